// SPDX-License-Identifier: Apache-2.0
// What the launcher carries: the zygote's script and its library.
    .section .rodata
    .global gradus_zygote_script
gradus_zygote_script:
    .incbin GRADUS_ZYGOTE_SCRIPT
    .byte 0
    .global gradus_zygote_library
    .global gradus_zygote_library_end
gradus_zygote_library:
    .incbin GRADUS_ZYGOTE_LIBRARY
gradus_zygote_library_end:
    .section .note.GNU-stack,"",%progbits
