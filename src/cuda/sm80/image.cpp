#include "cuda/sm80/image.h"

#include <algorithm>
#include <cctype>

#include "cuda/executable.h"
#include "cuda/function_source.h"
#include "cuda/nvrtc.h"
#include "cuda/score_params.h"

namespace tessera::internal {

KernelImage sm80_image(const Sm80Family& family, std::initializer_list<int> columns, std::string_view role,
                       std::string_view program, std::string_view element, const Problem& problem) {
  KernelImage image{std::string(family.name), {}, {}, false};
  std::string arguments;
  for (const int column : columns) {
    image.name += "_" + std::to_string(column);
    arguments += ", " + std::to_string(column);
  }
  if (!role.empty()) {
    image.name.append("_").append(role);
    arguments.append(", ").append(role);
  }
  if (!problem.score_function) {
    image.name.append("_").append(program).append("_").append(element);
    return image;
  }
  const std::string features =
      std::to_string(score_features(problem) | (problem.out_dtype() == DType::float32 ? kFloat32Output : 0));
  image.name.append("_").append(features).append(function_suffix(problem)).append("_").append(element);
  image.function = problem.score_function->name();
  image.approximate = problem.dtype != DType::float32;
  std::string macro(family.name);
  std::transform(macro.begin(), macro.end(), macro.begin(), [](unsigned char c) { return std::toupper(c); });
  image.source = function_source(problem) + "#include \"" + std::string(family.header) + "\"\nTESSERA_" + macro +
                 "_INSTANCE(" + image.name + arguments + ", features<" + features + ">, " + std::string(element) +
                 ")\n";
  return image;
}

std::string sm80_no_kernel(const Problem& problem, std::string missing) {
  if (problem.score_function) {
    return "score_function: no kernel can be compiled for it: " +
           nvrtc().unavailable().value_or("no tile of the tables takes it");
  }
  return std::move(missing) + " (configure with -DTESSERA_CUDA_KERNELS=all)";
}

}  // namespace tessera::internal
