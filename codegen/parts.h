// The parts of a description beside its update: the convolution and the norm, alone or in a layer; and the checks that
// all parts share.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <ssmjit/description.h>

namespace ssmjit {

// Each appends a sentence for what is wrong.
void check_dtype(const char* field, DType dtype, std::initializer_list<DType> allowed, std::vector<std::string>& out);
void check_expression(const char* field, const Expr& expr, std::initializer_list<Leaf> allowed,
                      std::vector<std::string>& out);
// For the conv and the norm that the description has.
void check_parts(const Description& description, std::vector<std::string>& out);
// For a description without heads.
void check_alone(const Description& description, std::vector<std::string>& out);

// "conv of 6144 channels, width 4, ..., norm of ...".
std::string parts_text(const Description& description);
// What of a part shapes its kernel.
nlohmann::ordered_json conv_shape(const Description& description);
nlohmann::ordered_json norm_shape(const Description& description);
// The same of a whole description without heads.
nlohmann::ordered_json alone_shape(const Description& description);

// Bytes of a request: of the convolution's windows in `dtype`; of all that a description without heads moves.
Bytes conv_state_bytes(const Description& description, DType dtype);
Bytes alone_bytes(const Description& description);

}  // namespace ssmjit
