// A Description as a JSON value, for the files that hold one among other things.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <ssmjit/description.h>

namespace ssmjit {

inline constexpr int kDescriptionSchema = 1;

nlohmann::ordered_json to_json_value(const Description& description);
// Fails: ErrorKind::invalid with all that is wrong, a line each.
Description description_from_json_value(const nlohmann::json& value);
// The same, collected: a sentence for each wrong field is appended to `problems`, never thrown.
Description read_description(const nlohmann::json& value, std::vector<std::string>& problems);

// Parses JSON in the order of the text. Fails: ErrorKind::invalid, "`what`: not JSON: ...", also for arrays and objects
// nested deeper than any file of ours, so that recursion over the value is bounded.
nlohmann::ordered_json parse_json(std::string_view text, std::string_view what);

// A value for a sentence: text in quotes, numbers as they are, "an object", "an array".
template <typename Json>
std::string shown(const Json& value);
extern template std::string shown(const nlohmann::json&);
extern template std::string shown(const nlohmann::ordered_json&);

}  // namespace ssmjit
