#include "tessera/communicator.h"

#include <algorithm>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#include "core/fail.h"
#include "tessera/plan.h"

namespace tessera {

Communicator::Memory Communicator::allocate(std::int64_t bytes) {
  constexpr std::align_val_t kAlignment{kWorkspaceAlignment};
  return {static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), kAlignment)),
          [](std::byte* memory) { ::operator delete(memory, kAlignment); }};
}

void Communicator::require_peer(const char* argument, int peer, int channel) const {
  if (peer < 0 || peer >= size() || peer == rank()) {
    internal::fail_argument(argument, std::int64_t{peer},
                            "ranks 0 to " + std::to_string(size() - 1) + " but this one, " + std::to_string(rank()));
  }
  if (channel < 0 || channel >= kChannels) {
    internal::fail_argument("channel", std::int64_t{channel}, "0 to " + std::to_string(kChannels - 1));
  }
}

Transfer Communicator::send(int to, int channel, std::span<const std::byte> bytes, void* stream) {
  require_peer("to", to, channel);
  Transfer transfer(start_send(to, channel, bytes, stream));
  traffic_.bytes_sent += static_cast<std::int64_t>(bytes.size());
  ++traffic_.messages_sent;
  return transfer;
}

Transfer Communicator::receive(int from, int channel, std::span<std::byte> bytes, void* stream) {
  require_peer("from", from, channel);
  Transfer transfer(start_receive(from, channel, bytes, stream));
  traffic_.bytes_received += static_cast<std::int64_t>(bytes.size());
  return transfer;
}

void Communicator::abort(const std::exception& error) noexcept {
  const auto* found = dynamic_cast<const Error*>(&error);
  const bool about_another = found != nullptr && found->code() == ErrorCode::peer;
  spread(about_another ? error.what() : "rank " + std::to_string(rank()) + " failed: " + error.what());
}

std::vector<std::vector<std::byte>> Communicator::gather(std::span<const std::byte> mine) {
  const auto ranks = static_cast<std::size_t>(size());
  std::vector<std::vector<std::byte>> all(ranks, std::vector<std::byte>(mine.size()));
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    auto& theirs = all[static_cast<std::size_t>(peer)];
    if (peer == rank()) {
      theirs.assign(mine.begin(), mine.end());
      continue;
    }
    transfers.push_back(receive(peer, kHostChannel, theirs));
    transfers.push_back(send(peer, kHostChannel, mine));
  }
  for (Transfer& transfer : transfers) {
    transfer.wait();
  }
  return all;
}

void run_local_ranks(int ranks, const std::function<void(Communicator&)>& body, const CommunicatorOptions& options) {
  run_local_ranks(std::vector<Device>(static_cast<std::size_t>(std::max(ranks, 0))), body, options);
}

void run_local_ranks(const std::vector<Device>& devices, const std::function<void(Communicator&)>& body,
                     const CommunicatorOptions& options) {
  auto communicators = local_communicators(devices, options);
  std::vector<std::exception_ptr> errors(communicators.size());
  std::vector<std::thread> threads;
  threads.reserve(communicators.size());
  for (std::size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<Communicator> communicator = std::move(communicators[rank]);
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        errors[rank] = std::current_exception();
        communicator->abort(error);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::exception_ptr about_a_peer;
  for (const std::exception_ptr& error : errors) {
    if (!error) {
      continue;
    }
    try {
      std::rethrow_exception(error);
    } catch (const Error& found) {
      if (found.code() != ErrorCode::peer) {
        throw;
      }
      about_a_peer = error;
    }
  }
  if (about_a_peer) {
    std::rethrow_exception(about_a_peer);
  }
}

}  // namespace tessera
