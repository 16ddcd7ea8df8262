#include "cli/ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "cli/flag_values.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "tessera/tcp.h"
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

// The devices from the first on, in turn.
Device device_of(const Device& first, int rank) {
  if (first.kind == DeviceKind::cpu) {
    return first;
  }
  internal::cuda_device(first.index);
  const auto count = static_cast<int>(cuda_info().devices.size());
  return {DeviceKind::cuda, (first.index + rank) % count};
}

bool started_by_torchrun() {
  constexpr std::array<const char*, 3> kNames{"RANK", "WORLD_SIZE", "MASTER_PORT"};
  return std::all_of(kNames.begin(), kNames.end(), [](const char* name) { return std::getenv(name) != nullptr; });
}

// Of this process on its machine, by which it takes a GPU.
int local_rank(const Communicator& communicator) {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"}) {
    if (const char* text = std::getenv(name)) {
      int rank = 0;
      if (std::from_chars(text, text + std::strlen(text), rank).ec != std::errc{} || rank < 0) {
        internal::fail_argument(name, text, "the number of this process on its machine, 0 or more");
      }
      return rank;
    }
  }
  return communicator.rank();
}

std::unique_ptr<Communicator> group_of_mpi(const RankFlags& flags) {
#ifdef TESSERA_HAVE_MPI
  MpiOptions options;
  options.communicator = flags.communicator;
  return mpi_communicator(options);
#else
  (void)flags;
  throw Error(ErrorCode::unsupported, "started as an MPI process, but " + mpi_text());
#endif
}

std::unique_ptr<Communicator> group_of_processes(const RankFlags& flags) {
  if (started_by_mpi()) {
    return group_of_mpi(flags);
  }
  TcpOptions options = tcp_options_from_environment();
  options.communicator = flags.communicator;
  return tcp_communicator(options);
}

int run_as_process(const RankFlags& flags, const Device& first, const std::function<int(Communicator&)>& body) {
  std::unique_ptr<Communicator> communicator = group_of_processes(flags);
  try {
    if (flags.ranks != 0 && flags.ranks != communicator->size()) {
      internal::fail_argument("--ranks", std::int64_t{flags.ranks},
                              fmt::format("the number of processes, {}", communicator->size()));
    }
    if (first.kind == DeviceKind::cuda) {
      const Device device = device_of(first, local_rank(*communicator));
      communicator = device_communicator(std::move(communicator), {device, flags.communicator}, flags.transport);
    }
    const int status = body(*communicator);
    return communicator->rank() == 0 ? status : 0;
  } catch (const std::exception& error) {
    if (communicator) {
      communicator->abort(error);
    }
    throw;
  }
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
  add_word(app, "--distributed", "spread the sequence over ranks: processes of mpirun or torchrun, or threads",
           {"automatic", "ring", "burst", "double_ring"},
           [this](const std::string& word) {
             for (const RingSchedule known :
                  {RingSchedule::automatic, RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
               schedule = word == schedule_name(known) ? known : schedule;
             }
           })
      ->group(kRankGroup);
  add_layout(app, layout);
  add_integer(app, "--ranks", fmt::format("ranks as threads of one process [{}]", kDefaultRanks), 1, kMostRanks,
              [this](auto n) { ranks = static_cast<int>(n); })
      ->group(kRankGroup);
  add_integer(app, "--ranks-per-node", "ranks that fast links connect [all]", 1, kMostRanks, [this](auto n) {
    links.ranks_per_node = static_cast<int>(n);
  })->group(kRankGroup);
  app.add_flag_callback(
         "--no-baseline", [this] { baseline = false; }, "bench: do not time one rank that has the whole problem")
      ->group(kRankGroup);
  add_word(app, "--transport",
           "between GPUs of processes [copy on one machine, else nccl where it is found, else host]",
           {"nccl", "copy", "host"},
           [this](const std::string& word) {
             transport = word == "copy"   ? DeviceTransport::copy
                         : word == "nccl" ? DeviceTransport::nccl
                                          : DeviceTransport::staged;
           })
      ->group(kRankGroup);
  add_integer(app, "--timeout", "seconds after which a silent rank is an error [60]", 1, 1 << 20, [this](auto n) {
    communicator.timeout = std::chrono::seconds(n);
  })->group(kRankGroup);
}

void RankFlags::check(const ::CLI::App& app, const Device& device) const {
  if (!schedule) {
    refuse_given(app, {"--layout", "--ranks", "--ranks-per-node", "--no-baseline", "--transport", "--timeout"},
                 "with --distributed");
  }
  if (device.kind == DeviceKind::cpu) {
    refuse_given(app, {"--transport"}, "with --device cuda");
  }
}

DistributedOptions RankFlags::options(const PlanOptions& plan, const Communicator& communicator) const {
  DistributedOptions options;
  options.schedule = schedule.value_or(RingSchedule::automatic);
  options.layout = layout;
  options.links = links;
  options.plan = plan;
  options.plan.device = communicator.device();
  return options;
}

int run_ranks(const RankFlags& flags, const Device& device, const std::function<int(Communicator&)>& body) {
  if (started_by_mpi() || started_by_torchrun()) {
    return run_as_process(flags, device, body);
  }
  int status = 0;
  const int ranks = flags.ranks == 0 ? kDefaultRanks : flags.ranks;
  std::vector<Device> devices(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    devices[static_cast<std::size_t>(rank)] = device_of(device, rank);
  }
  run_local_ranks(
      devices,
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
