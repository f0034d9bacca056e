#include "codegen/plan_text.h"

#include <ssmjit/description.h>

namespace ssmjit {

Plan parse_plan(std::string_view text, const Plan& base, const Description& description, const Arch& arch,
                std::int64_t total_heads) {
  const Plan plan = Plan::parse(text, base);
  if (plan.form == PlanForm::fused || base.form != PlanForm::fused || description.op() != Op::layer) return plan;
  return Plan::parse(text, default_chain(plan.form, description, arch, total_heads));
}

}  // namespace ssmjit
