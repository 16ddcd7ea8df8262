// One rank of an MPI job. Usage: tessera_mpi_program CASE [ARGUMENT]; what it prints, mpi_test.py reads.
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "cli/rank_tensors.h"
#include "support/tensor_ops.h"
#include "tessera/mpi.h"

namespace {

using namespace tessera;
using namespace std::chrono_literals;

constexpr double kAllowed = 2e-6;
constexpr int kFaulty = 1;

Problem problem_of(std::int64_t tokens) {
  Problem problem;
  problem.seq_q = problem.seq_k = tokens;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = problem.dim_v = 16;
  problem.mask = Mask::causal();
  return problem;
}

DistributedOptions with(RingSchedule schedule) {
  DistributedOptions options;
  options.schedule = schedule;
  options.plan.threads = 1;
  return options;
}

// Both passes over the ranks equal the oracle, for each schedule, on every rank.
int equality(Communicator& communicator) {
  cli::ProblemTensors whole(problem_of(150), {});
  cli::ProblemTensors wide = whole.widened();
  PlanOptions oracle;
  oracle.impl = "reference";
  const test::Outputs expected = test::run_both(wide, oracle);
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
    whole.poison_outputs();
    test::Outputs found;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      cli::run_on_rank(whole, pass, communicator, with(schedule), true);
      for (test::NamedValues& output : test::outputs_of(whole, pass)) found.push_back(std::move(output));
    }
    for (std::size_t n = 0; n < found.size(); ++n) {
      const double error = test::relative_error(found[n].values, expected[n].values);
      if (!(error <= kAllowed)) {
        std::printf("%s of %s: error %.2e\n", found[n].name.c_str(), std::string(schedule_name(schedule)).c_str(),
                    error);
        return 1;
      }
    }
  }
  return 0;
}

// Messages of `bytes` both ways, many in flight, with an answer on another channel that overtakes them.
int messages(Communicator& communicator, std::size_t bytes) {
  const int next = (communicator.rank() + 1) % communicator.size();
  const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
  constexpr std::size_t kCount = 5;
  std::vector<std::vector<std::byte>> out, in;
  std::vector<Transfer> transfers;
  for (std::size_t n = 0; n < kCount; ++n) {
    out.emplace_back(bytes, std::byte(n + static_cast<std::size_t>(communicator.rank()) * kCount));
    in.emplace_back(bytes);
  }
  std::array<std::byte, 1> overtaken{}, overtaking{std::byte(communicator.rank())};
  for (std::size_t n = 0; n < kCount; ++n) transfers.push_back(communicator.send(next, 0, out[n]));
  transfers.push_back(communicator.send(next, 1, overtaking));
  communicator.receive(previous, 1, overtaken).wait();
  for (std::size_t n = 0; n < kCount; ++n) transfers.push_back(communicator.receive(previous, 0, in[n]));
  for (Transfer& transfer : transfers) transfer.wait();
  for (std::size_t n = 0; n < kCount; ++n) {
    if (in[n] != std::vector(bytes, std::byte(n + static_cast<std::size_t>(previous) * kCount))) return 1;
  }
  return overtaken[0] == std::byte(previous) ? 0 : 1;
}

// Runs passes until something happens; rank kFaulty does `fault` before one of them.
int fault(Communicator& communicator, const std::string& kind) {
  const Problem problem = problem_of(96);
  const cli::ProblemTensors whole(problem, {});
  const auto start = std::chrono::steady_clock::now();
  try {
    const cli::RankTensors part(whole, SequenceLayout::Kind::zigzag, communicator.rank(), communicator.size());
    Problem planned = problem;
    if (kind == "plan" && communicator.rank() == kFaulty) planned.mask = Mask::none();
    DistributedPlan plan = DistributedPlan::make(planned, Pass::forward, communicator, with(RingSchedule::ring));
    for (int run = 0; run < 20; ++run) {
      ForwardTensors tensors = part.forward();
      if (run == 10 && communicator.rank() == kFaulty) {
        if (kind == "kill") ::raise(SIGKILL);
        if (kind == "stop") ::raise(SIGSTOP);
        if (kind == "sleep") std::this_thread::sleep_for(12s);
        if (kind == "leave") return 0;
        if (kind == "shape") tensors.k.shape[1] -= 1;
      }
      plan.run(tensors);
    }
  } catch (const Error& error) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("rank %d: %s after %.1f s\n", communicator.rank(), error.what(), seconds);
    std::fflush(stdout);
    return 0;
  }
  return 1;
}

int run(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const std::string argument = argc > 2 ? argv[2] : "";
  MpiOptions options;
  if (name == "fault") options.communicator.timeout = 4s;
  const auto communicator = mpi_communicator(options);
  const int status = name == "equality"   ? equality(*communicator)
                     : name == "messages" ? messages(*communicator, std::stoul(argument))
                     : name == "fault"    ? fault(*communicator, argument)
                                          : 2;
  if (status == 0 && name != "fault") std::printf("rank %d of %d: ok\n", communicator->rank(), communicator->size());
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
