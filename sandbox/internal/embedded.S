// SPDX-License-Identifier: Apache-2.0
// What the library carries: the launcher, and the header that C++ functions are called with.
    .section .rodata
    .global gradus_launcher
    .global gradus_launcher_end
gradus_launcher:
    .incbin GRADUS_LAUNCHER
gradus_launcher_end:
    .global gradus_call_header
    .global gradus_call_header_end
gradus_call_header:
    .incbin GRADUS_CALL_HEADER
gradus_call_header_end:
    .section .note.GNU-stack,"",%progbits
