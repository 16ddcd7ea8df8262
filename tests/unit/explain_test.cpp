#include "plan/explain.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

Problem problem() {
  Problem result;
  result.dtype = DType::bfloat16;
  result.seq_q = result.seq_k = 4096;
  result.heads_q = result.heads_kv = 16;
  result.dim_qk = result.dim_v = 128;
  return result;
}

// 2^43 / 2^3 FLOPs in all tiles, of which all pairs attend.
PlanFacts gpu_facts() {
  PlanFacts facts;
  facts.impl = "sm90";
  facts.tile_q = facts.tile_k = 128;
  facts.tiles = {16384, 0, 0, std::int64_t{16} << 24};
  facts.flops = facts.flops_of_pairs = 1.0e12;
  facts.kernels = {{"prepare", 0, 0, 0, 256, 32, 0, 0, 64, 0.1},
                   {"forward_d128", 128, 144, 2, 384, 168, 24, 200 * 1024, 132, 2.5}};
  facts.refusals = {"other: dtype: it takes float32"};
  return facts;
}

std::string text_of(const PlanFacts& facts, const Device& device, Pass pass = Pass::forward) {
  return internal::explain({problem(), pass, device, facts}, MachineRates{8e14, 227 * 1024});
}

void expect_line(const std::string& text, const std::string& line) {
  EXPECT_NE(text.find(line + "\n"), std::string::npos) << "no '" << line << "' in:\n" << text;
}

TEST(ExplainOnAGpu, HasALineForEveryKernel) {
  const std::string text = text_of(gpu_facts(), {DeviceKind::cuda, 3});
  expect_line(text, "impl       sm90 (cuda:3)");
  expect_line(text, "refused    other: dtype: it takes float32");
  expect_line(text,
              "kernel     prepare: 64 blocks of 256 threads, 0.10 waves; 32 registers a thread, no spills, no shared "
              "memory a block");
  expect_line(text,
              "kernel     forward_d128: tiles of 128 queries x 144 keys in 2 stages, 132 blocks of 384 threads, 2.50 "
              "waves; 168 registers a thread, 24 bytes of spills, 200 KiB of shared memory a block");
}

TEST(ExplainOnAGpu, SaysWhichKernelsTheBuildLacks) {
  PlanFacts facts = gpu_facts();
  facts.kernels.back().compiled = true;
  const std::string text = text_of(facts, {DeviceKind::cuda, 0});
  EXPECT_NE(text.find("200 KiB of shared memory a block; compiled at run time\n"), std::string::npos) << text;
  EXPECT_NE(text.find("no shared memory a block\n"), std::string::npos) << text;
}

// 1e12 FLOPs at 85 % of 8e14 a second take 1.47 ms; 2.5 waves as long as 3 make 1.76 ms of them.
TEST(ExplainOnAGpu, PredictsInWholeWaves) {
  const std::string text = text_of(gpu_facts(), {DeviceKind::cuda, 0});
  expect_line(
      text,
      "predicted  1.76 ms, 70.8 % of the measured matrix rate, 800 TFLOP/s: visited tiles at 85.0 %, times 1.20 "
      "for whole waves");
  EXPECT_NE(text_of(gpu_facts(), {DeviceKind::cuda, 0}, Pass::backward).find("visited tiles at 70.0 %"),
            std::string::npos);
}

// One query a head: K and V of 16 heads, 4096 keys and 2 x 128 columns of 2 bytes are 32 MiB.
TEST(ExplainOnAGpu, PredictsByMemoryWhatIsBoundByIt) {
  Problem decoding = problem();
  decoding.seq_q = 1;
  PlanFacts facts = gpu_facts();
  facts.flops = facts.flops_of_pairs = 1e9;
  const double rate = double{1 << 30} * 2000;
  const std::string text =
      internal::explain({decoding, Pass::forward, {DeviceKind::cuda, 0}, facts}, MachineRates{8e14, 227 * 1024, rate});
  expect_line(
      text,
      "predicted  17.4 us, bound by memory: 32.0 MiB of inputs and outputs at 90.0 % of the measured copy rate, "
      "1.95 TiB/s");
}

TEST(ExplainOnAGpu, NothingToDoTakesNoTime) {
  PlanFacts facts = gpu_facts();
  facts.flops = facts.flops_of_pairs = 0;
  facts.kernels.clear();
  EXPECT_NE(text_of(facts, {DeviceKind::cuda, 0}).find("predicted  0.00 us, 0.0 %"), std::string::npos);
}

TEST(ExplainOnTheCpu, CountsThreads) {
  PlanFacts facts = gpu_facts();
  facts.impl = "flash";
  facts.isa = "AVX2";
  facts.threads = 2;
  facts.kernels.clear();
  const std::string text = text_of(facts, {});
  expect_line(text, "impl       flash (AVX2, 2 threads)");
  expect_line(text, "predicted  735 us at 85.0 % of 800 TFLOP/s a thread");
  EXPECT_EQ(text.find("kernel"), std::string::npos);
}

}  // namespace
}  // namespace tessera
