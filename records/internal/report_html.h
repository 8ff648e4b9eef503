// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "records/internal/report_data.h"

namespace gradus::records::internal {

// `text` so that it stands in HTML, in an element or a quoted attribute, as it is: markup escaped,
// bytes that are not UTF-8 as U+FFFD, control characters as their pictures (U+2400 and on).
std::string escape_html(std::string_view text);

// The page: style, script and data inside, nothing from outside (a content security policy forbids
// it too).
std::string report_page(const ReportData& data);

// report.css and report.js, made a source file by the build.
extern const std::string_view kReportCss;
extern const std::string_view kReportJs;

}  // namespace gradus::records::internal
