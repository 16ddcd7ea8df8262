#include "cuda/sm90/image.h"

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "cuda/function_source.h"
#include "cuda/nvrtc.h"
#include "cuda/score_params.h"
#include "cuda/sm90/executable.h"
#include "cuda/tensors.h"

namespace tessera::internal {

namespace {

std::vector<std::string> names_of(std::uint32_t features) {
  std::vector<std::string> names;
  for (const auto& [feature, name] : {std::pair{ScoreFeature::softcap, "softcap"},
                                      {ScoreFeature::alibi, "alibi"},
                                      {ScoreFeature::bias, "bias"},
                                      {ScoreFeature::dropout, "dropout"},
                                      {ScoreFeature::sinks, "sinks"},
                                      {ScoreFeature::positions, "positions"}}) {
    if ((features & static_cast<std::uint32_t>(feature)) != 0) {
      names.emplace_back(name);
    }
  }
  if ((features & kBounded) != 0) {
    names.emplace_back("bounded");
  }
  return names;
}

}  // namespace

KernelImage sm90_image(const KernelFamily& family, std::initializer_list<int> columns, const Problem& problem,
                       std::uint32_t features) {
  KernelImage image{std::string(family.name), {}, {}, false};
  std::string arguments;
  for (const int column : columns) {
    image.name += "_" + std::to_string(column);
    arguments += std::to_string(column) + ", ";
  }
  const std::string mask(mask_kind_name(mask_kind(problem.mask)));
  const std::string element(element_name(problem.dtype));
  image.name += "_" + mask + "_" + element;
  for (const std::string& feature : names_of(features)) {
    image.name += "_" + feature;
  }
  if (problem.score_function) {
    image.name += function_suffix(problem);
    image.source = function_source(problem);
    image.function = problem.score_function->name();
    image.approximate = true;
  }
  std::string macro(family.name);
  std::transform(macro.begin(), macro.end(), macro.begin(), [](unsigned char c) { return std::toupper(c); });
  // The plain forward kernels are not made compact where a build compiles them.
  const std::uint32_t program = features == 0 && family.name == kForwardFamily.name ? kCompact : features;
  image.source += "#include \"" + std::string(family.header) + "\"\nTESSERA_" + macro +
                  (program == 0 ? "_INSTANCE(" : "_PROGRAM(") + image.name + ", " + arguments + mask + ", " + element +
                  (program == 0 ? ")\n" : ", " + std::to_string(program) + ")\n");
  return image;
}

std::uint32_t backward_features(const Problem& problem) {
  return score_features(problem) & ~static_cast<std::uint32_t>(ScoreFeature::sinks);
}

bool in_tables(const Problem& problem, std::uint32_t program, std::span<const ProgramRow> rows) {
  const MaskKind mask = mask_kind(problem.mask);
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  return program == 0 || ((mask == MaskKind::dense || mask == MaskKind::causal) &&
                          std::any_of(rows.begin(), rows.end(), [&](const ProgramRow& row) {
                            return static_cast<std::uint32_t>(row.program) == program && row.head_dim >= dim;
                          }));
}

std::string no_kernel(const Problem& problem, std::uint32_t features, std::string_view kernel, bool in_tables) {
  std::string text = "head dim " + std::to_string(std::max(problem.dim_qk, problem.dim_v)) + " in " +
                     std::string(element_name(problem.dtype));
  for (const std::string& feature : names_of(features)) {
    text += " with " + feature;
  }
  if (problem.score_function) {
    text = "score_function: " + text;
  }
  text.append(": this build has no ").append(kernel).append(" for it");
  if (in_tables) {
    text += " (configure with -DTESSERA_CUDA_KERNELS=all)";
  }
  return text + ", and none can be compiled: " + nvrtc().unavailable().value_or("no tile of the tables takes it");
}

}  // namespace tessera::internal
