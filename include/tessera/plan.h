// How a Problem is computed: the chosen Impl, its tiles and its workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tessera/problem.h"
#include "tessera/tensor_view.h"

namespace tessera {

// Optional tensors that modify scores; each must be present exactly when the Problem says so.
struct ScoreTensors {
  ConstTensorView bias;          // Problem::bias_shape, any strides
  ConstTensorView alibi_slopes;  // float32 [heads_q] or [batch, heads_q]
  ConstTensorView sinks;         // float32 [heads_q]
};

// Shapes are those of Problem. Every tensor's last dimension has stride 1; other strides are free. Outputs must not
// overlap inputs or each other; one that begins where another tensor does is refused.
struct ForwardTensors {
  ConstTensorView q, k, v;
  TensorView out;
  TensorView lse;  // optional; float32 [batch, heads_q, seq_q] or, ragged, [heads_q, total_q]; last stride free
  ScoreTensors score;
  // Each present exactly when the Problem says so. On a GPU their numbers are read when the kernels run, so that a graph replays
  // with new ones: lengths outside 0 .. seq_k are then taken as the nearer end, pages outside the pool as some page of it. On
  // the CPU they are refused.
  ConstTensorView key_lengths{};  // Problem::lengths_in_tensors: int32 [batch]
  // Problem::page_size: int32 [batch, pages_per_sequence()]; what lies behind a length is not read.
  ConstTensorView page_table{};
};

struct BackwardTensors {
  ConstTensorView q, k, v;
  ConstTensorView out, lse;  // as the forward pass wrote them
  ConstTensorView dout;      // gradient with respect to O
  ConstTensorView dlse;      // optional: gradient with respect to LSE, shaped as lse
  TensorView dq, dk, dv;
  TensorView dbias;   // optional: [batch or 1, heads_q or 1, seq_q or 1, seq_k or 1], summed where the extent is 1
  TensorView dsinks;  // optional: float32 [heads_q]
  ScoreTensors score;
};

struct PlanOptions {
  Device device{};
  std::string impl;  // force one Impl by name; empty: TESSERA_IMPL, else the first that accepts
  std::string isa;   // force an instruction set of the CPU Impl; empty: TESSERA_ISA, else the best this CPU has for it
  int threads = 0;   // up to 4096; 0: OpenMP's default
  // Backward: the keys are a part of those that `out`, `lse` and `dlse` are about, as in one step of a ring. The gradients
  // are then this part's share: dK and dV of these keys, and a term of dQ.
  bool part_of_keys = false;
  // Backward: the same bits in every run. On a GPU, false lets the terms of dQ be added in any order.
  bool deterministic = true;
  // Of float32 problems; others and Impls without such products ignore it.
  Float32Products float32_products = Float32Products::exact;
};

// Measured rates of a machine, for predictions.
struct MachineRates {
  double flops_per_second = 0;   // of one thread, float32; of a GPU, its matrix products in 16 bits
  std::int64_t cache_bytes = 0;  // the fast memory M of the IO model
  double bytes_per_second = 0;   // of a GPU, a copy: read and written
};

// One kernel that a plan launches on a GPU.
struct KernelFacts {
  std::string name;
  std::int64_t tile_q = 0, tile_k = 0;
  int stages = 0;                 // tiles of K and V (or of Q and dO) in flight
  int threads = 0;                // of a block
  int registers = 0;              // of a thread, as the compiler reports them
  std::int64_t spill_bytes = 0;   // of a thread
  std::int64_t shared_bytes = 0;  // of a block
  std::int64_t blocks = 0;
  double waves = 0;       // blocks' worth of work over the blocks that run at once
  bool compiled = false;  // at run time, or taken from the cache of those; else the build has it
};

// Everything that explain() prints, as data.
struct PlanFacts {
  std::string impl;
  std::string isa;
  int threads = 1;
  std::int64_t tile_q = 0;
  std::int64_t tile_k = 0;
  TileSchedule::Counts tiles;  // over all sequences and query heads
  double flops = 0;  // in the visited tiles: 2 (dim_qk + dim_v) a pair forward, 2 (3 dim_qk + 2 dim_v) backward
  double flops_of_pairs = 0;  // of the pairs that attend alone
  std::int64_t workspace_bytes = 0;
  double expected_share = 0.85;  // of a CPU plan: of its threads' FMA peak, that long sequences of head dim 128 reach
  std::vector<KernelFacts> kernels;   // of a GPU plan, in launch order
  std::vector<std::string> refusals;  // "impl: reason", of the Impls that come before the chosen one
};

inline constexpr std::size_t kWorkspaceAlignment = 64;

namespace internal {
class Executable;
}

class Plan {
 public:
  // Throws Error(invalid_argument) for a bad problem, Error(unsupported) with every Impl's reason when none accepts.
  // Plans are immutable; one may run from several threads at once, each with its own workspace and outputs.
  static Plan make(const Problem& problem, Pass pass, const PlanOptions& options = {});

  const Problem& problem() const { return problem_; }
  Pass pass() const { return pass_; }
  const PlanFacts& facts() const { return facts_; }
  // Bytes that run() needs besides its tensors. Given a workspace, it allocates nothing itself.
  std::int64_t workspace_bytes() const { return facts_.workspace_bytes; }
  // A page of text: Impl, refusals, tiles, FLOPs, memory, bytes moved in the IO model of the FlashAttention paper
  // (Dao et al. 2022, Theorem 2) and, with `rates`, the predicted time.
  std::string explain(const std::optional<MachineRates>& rates = std::nullopt) const;

  // Validate the tensors, then compute. `workspace` must have workspace_bytes() bytes and start at a multiple of
  // kWorkspaceAlignment; an empty span makes run() allocate its own for the call. `stream` is a cudaStream_t for CUDA plans,
  // unused on the CPU.
  void run(const ForwardTensors& tensors, std::span<std::byte> workspace = {}, void* stream = nullptr) const;
  void run(const BackwardTensors& tensors, std::span<std::byte> workspace = {}, void* stream = nullptr) const;

 private:
  Plan() = default;
  Problem problem_;
  Pass pass_ = Pass::forward;
  Device device_;
  PlanFacts facts_;
  std::shared_ptr<const internal::Executable> executable_;
};

// One row for each Impl: whether this machine has it and, if not, why.
struct ImplInfo {
  std::string name;
  std::string summary;
  bool available = false;
  std::string reason;  // when it is not available
};
std::vector<ImplInfo> implementations();

struct CpuInfo {
  std::vector<std::string> isas;  // that this build has and this CPU runs, best first
  std::string selected_isa;       // after TESSERA_ISA
  int threads = 1;                // OpenMP's default
  std::int64_t l2_bytes = 0;      // of one core; 0 when unknown
};
CpuInfo cpu_info();

struct CudaDeviceInfo {
  int index = 0;
  std::string name;
  int capability_major = 0, capability_minor = 0;
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t shared_bytes = 0;  // the most that a block can have
};

struct CudaInfo {
  std::string unavailable;  // why there are no devices; empty when there are
  std::string driver;       // CUDA version of the driver, "13.0"; empty without one
  std::vector<CudaDeviceInfo> devices;
};
CudaInfo cuda_info();

// Multiply-adds in registers alone with the given instruction set ("" for the selected one), one thread, best of many
// short runs: FLOP/s. Takes about 10 ms.
double measure_peak_flops(const std::string& isa = {});

}  // namespace tessera
