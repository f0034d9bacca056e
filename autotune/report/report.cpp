#include <fmt/format.h>

#include <ssmjit/report.h>

#include "autotune/report/page_files.h"
#include "autotune/report/report_data.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

std::string_view page_file(std::string_view name) {
  for (const auto& [file, content] : report_page_files())
    if (file == name) return content;
  fail(ErrorKind::internal, "no {} is embedded in this build", name);
}

// JSON that may stand in a script element: without a `<` no text of a journal ends the element or opens a comment.
std::string for_script(const nlohmann::ordered_json& data) {
  const std::string json = data.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  std::string text;
  text.reserve(json.size());
  for (const char c : json) {
    if (c == '<')
      text += "\\u003c";
    else
      text += c;
  }
  return text;
}

}  // namespace

std::string report_html(const std::vector<Measurement>& measurements, const ReportOptions& options) {
  if (measurements.empty() && options.speculative.empty())
    fail(ErrorKind::invalid,
         "report: no measurement in {}; wants a journal with at least one whole line, as ssmjit tune --journal writes",
         !options.journals.empty()            ? in_quotes(options.journals.front().name)
         : !options.speculative_files.empty() ? in_quotes(options.speculative_files.front().name)
                                              : "the journal");
  const std::string data = for_script(report_data(measurements, options));
  // In the page's order; what was put in is not searched again.
  std::string page;
  std::string_view rest = page_file("page.html");
  for (const auto& [mark, content] :
       {std::pair<std::string_view, std::string_view>{"@page.css@", page_file("page.css")},
        {"@data@", data},
        {"@page.js@", page_file("page.js")}}) {
    const std::size_t at = rest.find(mark);
    if (at == std::string_view::npos) fail(ErrorKind::internal, "page.html has no {}", mark);
    page.append(rest.substr(0, at)).append(content);
    rest.remove_prefix(at + mark.size());
  }
  return page.append(rest);
}

}  // namespace ssmjit
