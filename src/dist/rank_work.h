// What one rank computes in one pass, and the memory that stays with it: what RingEngine calls.
#pragma once

#include <span>
#include <vector>

#include "dist/block_tasks.h"
#include "dist/ring_engine.h"
#include "dist/ring_program.h"

namespace tessera::internal {

// The tensors of a travelling block in the order of its memory; for null memory their shapes.
std::vector<TensorView> block_tensors(const RingGroup& group, std::byte* memory, int owner, Device device);

// The tasks of each step, all heads at once. In a backward pass the own block is worked on in two parts: half of the heads
// first, while the first blocks come, and the others last, while the own gradients come home.
struct RankTasks {
  RankTasks(const RingGroup& group, const Route& route, const PlanOptions& options);
  std::vector<Tasks> steps;  // and the closing tasks behind them
  const Tasks& closing() const { return steps.back(); }
};

// Slots for each tensor that stays at a rank. On a device the results of a forward pass over up to four ranks wait for one merge;
// gradients, of which the kernels take longer, for two at a time.
int staying_slots(const RingGroup& group, DeviceKind device);

// Sums and slots of what stays at a rank. Without memory it counts. Partial::lse is absent in gradients.
struct KeptMemory {
  KeptMemory(std::byte* memory, const RingGroup& group, int rank, Device device);

  // Forward: O and LSE. Backward: dQ, or dK and dV, whichever does not travel.
  std::vector<Partial> sums;                // one for each tensor
  std::vector<std::vector<Partial>> slots;  // of each tensor
  // Backward: of the travelling tensors, those of the own block.
  std::vector<Partial> own_sums;
  std::vector<std::vector<Partial>> own_slots;
  std::byte* travelling_slot = nullptr;  // of another block's gradients
  TensorView minus_delta;
  TensorView slopes;  // [batch, heads]
  TensorView dsinks;
  std::int64_t bytes = 0;
};

struct RankContext {
  const RingGroup& group;
  const Route& route;
  Communicator& communicator;
  int rank;
  Device device;
  const RankTasks& tasks;
  const TaskMemory& memory;
  KeptMemory kept;
  ScoreTensors score;
  int threads;
  void* stream;

  TaskRun task_run() const;
  int owner_of(int step) const { return route.steps[static_cast<std::size_t>(step)].owner; }
  PlaceGrid grid(bool queries, int owner) const;
  // `travels`: of a block that travels, whose slot on the CPU is that of all such blocks.
  Gathered gathered(bool queries, bool travels, int owner, std::vector<Partial> slots, const Partial& sum) const;
  // The messages of the own block: the tensors themselves where they have no gaps and may be sent one by one, else copies.
  std::vector<std::span<const std::byte>> messages(std::byte* packed, std::span<const ConstTensorView> tensors) const;
};

class ForwardWork final : public RingWork {
 public:
  ForwardWork(RankContext context, const ForwardTensors& tensors);
  std::span<const std::span<const std::byte>> own_messages(std::byte* packed);
  void compute(int step, std::byte* block, std::byte* sum) override;
  void gather(int /*step*/, std::byte* /*sum*/, std::byte* /*arrived*/) override {}
  void add_to_own(std::byte* /*arrived*/, bool /*stays*/) override {}
  void finish_own() override {}
  void finish();

 private:
  RankContext context_;
  ForwardTensors tensors_;
  TaskRun run_;
  Gathered out_;
  std::vector<std::span<const std::byte>> messages_;
};

class BackwardWork final : public RingWork {
 public:
  BackwardWork(RankContext context, const BackwardTensors& tensors);
  std::span<const std::span<const std::byte>> own_messages(std::byte* packed);
  void compute(int step, std::byte* block, std::byte* sum) override;
  void gather(int step, std::byte* sum, std::byte* arrived) override;
  void add_to_own(std::byte* arrived, bool stays) override;
  void finish_own() override;
  void finish();

 private:
  // Those of a block's travelling tensors: one for queries, two for keys.
  std::vector<Gathered> travelling(int owner, std::byte* sum);
  std::vector<TensorView> gradient_tensors(std::byte* memory, int owner, DType dtype) const;
  void run(const Tasks& tasks, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
           std::vector<Gathered>& travelling);
  ConstQueriesBlock own_queries() const;

  RankContext context_;
  BackwardTensors tensors_;
  TaskRun run_;
  std::vector<Communicator::Memory> dbias_memory_;
  std::vector<Gathered> staying_;
  std::vector<Gathered> own_;
  std::vector<Gathered> block_;  // of the step that computes
  int block_step_ = -1;
  std::vector<std::span<const std::byte>> messages_;
};

}  // namespace tessera::internal
