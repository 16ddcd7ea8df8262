// The images that tables name and those that plans ask for are the same: needs no GPU.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "cuda/embedded.h"
#include "cuda/nvrtc.h"
#include "cuda/sm90/executable.h"
#include "gpu/program_rows.h"

namespace tessera {
namespace {

using internal::Kernel;
using test::ProgramImage;

std::vector<std::string> asked(const Problem& problem, Pass pass) {
  std::vector<std::string> names;
  for (const internal::KernelImage& image :
       pass == Pass::forward ? internal::forward_images(problem) : internal::backward_images(problem)) {
    names.push_back(image.name);
  }
  return names;
}

// Kernels may be compiled or not, whatever the other tests say.
class Images : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { GetParam() ? ::unsetenv("TESSERA_JIT") : ::setenv("TESSERA_JIT", "off", 1); }
  void TearDown() override { ::unsetenv("TESSERA_JIT"); }
};
INSTANTIATE_TEST_SUITE_P(Jit, Images, testing::Bool(), [](const auto& info) { return info.param ? "on" : "off"; });

// With the run-time compiler for a build without the image; off, for a plan that has to find it. Without either the image of a
// wider head may serve.
TEST_P(Images, OfProgramsAreNamedAsPlansAskForThem) {
  const bool compiler = !internal::nvrtc().unavailable();
  for (const ProgramImage& row : test::program_images()) {
    SCOPED_TRACE(row.name);
    const std::vector<std::string> names = asked(row.problem, row.pass);
    if (Kernel::exists(row.name) || compiler) {
      EXPECT_EQ(names, std::vector{row.name});
    }
    for (const std::string& name : names) EXPECT_TRUE(Kernel::exists(name) || compiler) << name;
    const auto missing = row.pass == Pass::forward ? internal::forward_missing(row.problem, {})
                                                   : internal::backward_missing(row.problem, {});
    EXPECT_EQ(missing.has_value(), names.empty());
    EXPECT_TRUE(!missing || missing->find("-DTESSERA_CUDA_KERNELS=all") != std::string::npos) << *missing;
  }
}

TEST(ImagesOfABuildOfAllKernels, HasThoseOfPrograms) {
  if (std::string_view(TESSERA_TEST_KERNELS) != "all") GTEST_SKIP() << "the build set is " << TESSERA_TEST_KERNELS;
  for (const ProgramImage& row : test::program_images()) {
    EXPECT_TRUE(Kernel::exists(row.name)) << row.name;
  }
}

std::vector<Problem> plain_problems() {
  Segments segments;
  segments.query.resize(8192);
  segments.key.resize(8192);
  std::vector<Problem> problems;
  for (const std::int64_t dim : {64, 96, 128, 192, 256}) {
    for (const std::int64_t keys : {64, 8192}) {
      for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(64, 0), Mask::segments(segments)}) {
        for (const DType dtype : {DType::bfloat16, DType::float16}) {
          problems.push_back(test::gpu_problem(8192, keys, 1, dim, mask));
          problems.back().dtype = dtype;
        }
      }
    }
  }
  return problems;
}

// An image whose name no plan has costs the build its time and the library its bytes.
TEST_P(Images, OfTheBuildAreAllAskedFor) {
  std::set<std::string> unknown;
  for (const internal::EmbeddedImage& image : internal::embedded_images()) {
    if (image.name.starts_with("sm90_")) unknown.emplace(image.name);
  }
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const Problem& problem : plain_problems()) {
      for (const std::string& name : asked(problem, pass)) unknown.erase(name);
    }
  }
  for (const ProgramImage& row : test::program_images()) {
    for (const std::string& name : asked(row.problem, row.pass)) unknown.erase(name);
  }
  EXPECT_EQ(unknown, std::set<std::string>{});
}

}  // namespace
}  // namespace tessera
