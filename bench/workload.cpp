#include "workload.h"

#include <ctime>
#include <random>

#include "core/half.h"

namespace tessera::bench {

namespace {

Mask mask_of(const Case& settings) {
  const BlockGrid grid{settings.length, settings.length, 128, 128};
  if (settings.mask == "causal") {
    return Mask::causal();
  }
  if (settings.mask == "butterfly") {
    return Mask::blocks(block_patterns::butterfly(grid));
  }
  if (settings.mask == "random-1/8" || settings.mask == "random-1/2") {
    return Mask::blocks(block_patterns::random(grid, settings.mask == "random-1/8" ? 0.125 : 0.5, 1));
  }
  return {};
}

Plan plan_of(const Case& settings, Pass pass) {
  Problem problem;
  problem.dtype = settings.dtype;
  problem.seq_q = settings.length;
  problem.seq_k = settings.length;
  problem.heads_q = settings.heads;
  problem.heads_kv = settings.heads;
  problem.dim_qk = settings.dim;
  problem.dim_v = settings.dim;
  problem.mask = mask_of(settings);
  PlanOptions options;
  options.impl = settings.impl;
  options.isa = settings.isa;
  options.threads = settings.threads;
  return Plan::make(problem, pass, options);
}

}  // namespace

double now_seconds(Clock clock) {
  timespec time{};
  clock_gettime(clock == Clock::cpu ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string name_of(const Case& settings) {
  std::string name(pass_name(settings.pass));
  name += "/" + std::string(dtype_name(settings.dtype));
  name += "/d" + std::to_string(settings.dim);
  name += "/n" + std::to_string(settings.length);
  if (settings.heads > 1) {
    name += "/h" + std::to_string(settings.heads);
  }
  name += "/" + settings.mask;
  return name + "/threads" + std::to_string(settings.threads);
}

Workload::Workload(const Case& settings) : case_(settings), plan_(plan_of(settings, settings.pass)) {
  q_ = tensor(settings.dim, 1);
  k_ = tensor(settings.dim, 2);
  v_ = tensor(settings.dim, 3);
  out_.resize(q_.size());
  lse_.resize(static_cast<std::size_t>(settings.heads * settings.length) * sizeof(float));
  if (settings.pass == Pass::backward) {
    dout_ = tensor(settings.dim, 4);
    dq_.resize(q_.size());
    dk_.resize(q_.size());
    dv_.resize(q_.size());
    plan_of(settings, Pass::forward).run(forward_tensors());
  }
}

Workload::Bytes Workload::tensor(std::int64_t dim, unsigned seed) const {
  const std::int64_t elements = case_.length * case_.heads * dim;
  Bytes bytes(static_cast<std::size_t>(elements * dtype_bytes(case_.dtype)));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t n = 0; n < elements; ++n) {
    internal::store_element(bytes.data(), case_.dtype, n, static_cast<double>(normal(generator)));
  }
  return bytes;
}

TensorView Workload::view(Bytes& bytes) const {
  return {bytes.data(), case_.dtype, {1, case_.length, case_.heads, case_.dim}};
}

TensorView Workload::lse_view() { return {lse_.data(), DType::float32, {1, case_.heads, case_.length}}; }

ForwardTensors Workload::forward_tensors() { return {view(q_), view(k_), view(v_), view(out_), lse_view(), {}}; }

BackwardTensors Workload::backward_tensors() {
  BackwardTensors tensors;
  tensors.q = view(q_);
  tensors.k = view(k_);
  tensors.v = view(v_);
  tensors.out = view(out_);
  tensors.lse = lse_view();
  tensors.dout = view(dout_);
  tensors.dq = view(dq_);
  tensors.dk = view(dk_);
  tensors.dv = view(dv_);
  return tensors;
}

void Workload::make_workspace() {
  if (!workspace_) {
    const auto bytes = static_cast<std::size_t>(plan_.workspace_bytes());
    workspace_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
  }
}

void Workload::run() {
  make_workspace();
  run_in({workspace_.get(), static_cast<std::size_t>(plan_.workspace_bytes())});
}

double Workload::seconds_of_run(Clock clock) {
  const double start = now_seconds(clock);
  run();
  return now_seconds(clock) - start;
}

void Workload::run_without_workspace() { run_in({}); }

void Workload::run_in(std::span<std::byte> workspace) {
  if (case_.pass == Pass::forward) {
    plan_.run(forward_tensors(), workspace);
  } else {
    plan_.run(backward_tensors(), workspace);
  }
}

std::int64_t Workload::output_bytes() const {
  return static_cast<std::int64_t>(case_.pass == Pass::forward ? out_.size() + lse_.size()
                                                               : dq_.size() + dk_.size() + dv_.size());
}

}  // namespace tessera::bench
