#include "cli/ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "cli/flag_values.h"
#include "core/fail.h"
#ifdef TESSERA_HAVE_MPI
#include "tessera/mpi.h"
#endif

namespace tessera::cli {

namespace {

constexpr int kDefaultRanks = 2;
constexpr int kMostRanks = 4096;
constexpr const char* kRankGroup = "Ranks";

// The environment that Open MPI, MPICH, Slurm and other PMI starters give to their processes.
bool started_by_mpi() {
  constexpr std::array<const char*, 4> kNames{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"};
  return std::any_of(kNames.begin(), kNames.end(), [](const char* name) { return std::getenv(name) != nullptr; });
}

int run_as_process(const RankFlags& flags, const std::function<int(Communicator&)>& body) {
#ifdef TESSERA_HAVE_MPI
  MpiOptions options;
  options.communicator = flags.communicator;
  const auto communicator = mpi_communicator(options);
  try {
    if (flags.ranks != 0 && flags.ranks != communicator->size()) {
      internal::fail_argument("--ranks", std::int64_t{flags.ranks},
                              fmt::format("the number of processes, {}", communicator->size()));
    }
    const int status = body(*communicator);
    return communicator->rank() == 0 ? status : 0;
  } catch (const std::exception& error) {
    communicator->abort(error);
    throw;
  }
#else
  (void)flags;
  (void)body;
  throw Error(ErrorCode::unsupported, "started as an MPI process, but " + mpi_text());
#endif
}

}  // namespace

void add_layout(::CLI::App& app, SequenceLayout::Kind& layout) {
  using Kind = SequenceLayout::Kind;
  add_word(app, "--layout", "which tokens a rank owns [zigzag]", {"contiguous", "zigzag", "striped"},
           [&layout](const std::string& word) {
             layout = word == "contiguous" ? Kind::contiguous : word == "zigzag" ? Kind::zigzag : Kind::striped;
           })
      ->group(kRankGroup);
}

void RankFlags::add(::CLI::App& app) {
  add_word(app, "--distributed", "spread the sequence over ranks: processes of mpirun, or threads",
           {"automatic", "ring", "burst", "double_ring"},
           [this](const std::string& word) {
             for (const RingSchedule known :
                  {RingSchedule::automatic, RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
               schedule = word == schedule_name(known) ? known : schedule;
             }
           })
      ->group(kRankGroup);
  add_layout(app, layout);
  add_integer(app, "--ranks", fmt::format("ranks as threads, without mpirun [{}]", kDefaultRanks), 1, kMostRanks,
              [this](auto n) { ranks = static_cast<int>(n); })
      ->group(kRankGroup);
  add_integer(app, "--ranks-per-node", "ranks that fast links connect [all]", 1, kMostRanks, [this](auto n) {
    links.ranks_per_node = static_cast<int>(n);
  })->group(kRankGroup);
  add_integer(app, "--timeout", "seconds after which a silent rank is an error [60]", 1, 1 << 20, [this](auto n) {
    communicator.timeout = std::chrono::seconds(n);
  })->group(kRankGroup);
}

DistributedOptions RankFlags::options(const PlanOptions& plan) const {
  if (plan.device.kind != DeviceKind::cpu) {
    internal::fail_argument("--device", device_text(plan.device), "cpu beside --distributed");
  }
  DistributedOptions options;
  options.schedule = schedule.value_or(RingSchedule::automatic);
  options.layout = layout;
  options.links = links;
  options.plan = plan;
  return options;
}

int run_ranks(const RankFlags& flags, const std::function<int(Communicator&)>& body) {
  if (started_by_mpi()) {
    return run_as_process(flags, body);
  }
  int status = 0;
  run_local_ranks(
      flags.ranks == 0 ? kDefaultRanks : flags.ranks,
      [&](Communicator& communicator) {
        const int own = body(communicator);
        if (communicator.rank() == 0) {
          status = own;
        }
      },
      flags.communicator);
  return status;
}

std::string mpi_text() {
#ifdef TESSERA_HAVE_MPI
  return mpi_library_version();
#else
  return "not in this build; install libopenmpi-dev and configure again";
#endif
}

}  // namespace tessera::cli
