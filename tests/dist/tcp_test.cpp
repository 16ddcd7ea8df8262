// Ranks that meet over TCP; here they are threads. Lost processes are tests/mpi's and the transports' own affair alike: a
// socket that closes.
#include <gtest/gtest.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cli/rank_tensors.h"
#include "support/expect_error.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"
#include "tessera/tcp.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

std::string meeting_file() {
  static std::atomic<int> number{0};
  const std::string name = "tessera-" + std::to_string(::getpid()) + "-" + std::to_string(number++);
  return (std::filesystem::temp_directory_path() / name).string();
}

// What each rank's body threw.
std::vector<std::string> over_tcp(int ranks, std::chrono::milliseconds timeout,
                                  const std::function<void(Communicator&)>& body,
                                  const std::function<void(TcpOptions&)>& change = {}) {
  const std::string file = meeting_file();
  std::vector<std::string> found(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      TcpOptions options;
      options.rank = rank;
      options.ranks = ranks;
      options.file = file;
      options.communicator.timeout = timeout;
      if (change) change(options);
      try {
        const auto communicator = tcp_communicator(options);
        try {
          body(*communicator);
        } catch (const std::exception& error) {
          communicator->abort(error);
          throw;
        }
      } catch (const std::exception& error) {
        found[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::filesystem::remove(file);
  return found;
}

TEST(Tcp, PassesEqualThoseOfOneDevice) {
  Problem problem;
  problem.seq_q = problem.seq_k = 75;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = problem.dim_v = 16;
  problem.mask = Mask::causal();
  cli::ProblemTensors tensors(problem, {});
  PlanOptions one;
  one.threads = 1;
  const test::Outputs expected = test::run_both(tensors, one);
  tensors.poison_outputs();
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
    const auto found = over_tcp(4, 30s, [&](Communicator& communicator) {
      DistributedOptions options;
      options.schedule = schedule;
      options.plan.threads = 1;
      // Each has tensors of its own, as processes have; the first rank's are compared.
      cli::ProblemTensors own(problem, {});
      cli::ProblemTensors& whole = communicator.rank() == 0 ? tensors : own;
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        cli::run_on_rank(whole, pass, communicator, options, true);
      }
    });
    for (const std::string& failure : found) EXPECT_EQ(failure, "");
    test::Outputs outputs = test::outputs_of(tensors, Pass::forward);
    for (auto& output : test::outputs_of(tensors, Pass::backward)) outputs.push_back(std::move(output));
    for (std::size_t n = 0; n < expected.size(); ++n) {
      EXPECT_LE(test::relative_error(outputs[n].values, expected[n].values), 2e-6) << expected[n].name;
    }
  }
}

TEST(Tcp, MessagesOfAnySizeInAnyOrder) {
  const auto found = over_tcp(3, 30s, [](Communicator& communicator) {
    const int next = (communicator.rank() + 1) % 3;
    const int previous = (communicator.rank() + 2) % 3;
    for (const std::size_t bytes : {0U, 1U, 4096U, 5000000U}) {
      std::vector<std::byte> out(bytes, static_cast<std::byte>(communicator.rank() + 1));
      std::vector<std::byte> first(bytes);
      std::vector<std::byte> second(bytes / 2);
      // The second channel is asked for first; the messages of the first one come early.
      Transfer sent = communicator.send(next, 0, out);
      Transfer half = communicator.send(next, 1, std::span(out).first(bytes / 2));
      communicator.receive(previous, 1, second).wait();
      communicator.receive(previous, 0, first).wait();
      sent.wait();
      half.wait();
      EXPECT_EQ(first, std::vector<std::byte>(bytes, static_cast<std::byte>(previous + 1)));
      EXPECT_EQ(second, std::vector<std::byte>(bytes / 2, static_cast<std::byte>(previous + 1)));
    }
    const int mine = communicator.rank() * 7;
    EXPECT_EQ(communicator.gather(std::as_bytes(std::span(&mine, 1))).size(), 3U);
  });
  for (const std::string& failure : found) EXPECT_EQ(failure, "");
}

TEST(Tcp, ARankThatLeavesFailsOrIsSilentIsNamed) {
  const auto wait_for_the_next = [](Communicator& communicator) {
    std::array<std::byte, 4> bytes{};
    communicator.receive((communicator.rank() + 1) % 3, 0, bytes).wait();
  };
  const auto left = over_tcp(3, 30s, [&](Communicator& communicator) {
    if (communicator.rank() != 2) wait_for_the_next(communicator);
  });
  EXPECT_EQ(left[0], "rank 2 left before its work was done");
  EXPECT_EQ(left[1], "rank 2 left before its work was done");
  const auto failed = over_tcp(3, 30s, [&](Communicator& communicator) {
    if (communicator.rank() == 2) throw std::runtime_error("the cause");
    wait_for_the_next(communicator);
  });
  EXPECT_EQ(failed[0], "rank 2 failed: the cause");
  EXPECT_EQ(failed[1], "rank 2 failed: the cause");
  std::atomic<int> others{2};
  const auto silent = over_tcp(3, 400ms, [&](Communicator& communicator) {
    if (communicator.rank() == 2) {
      while (others > 0) std::this_thread::sleep_for(1ms);
      return;
    }
    try {
      wait_for_the_next(communicator);
    } catch (const Error&) {
      --others;
      throw;
    }
  });
  for (const int rank : {0, 1}) {  // who finds it first is a matter of luck
    const std::string& failure = silent[static_cast<std::size_t>(rank)];
    EXPECT_EQ(failure.find("rank 2 was silent for 0.4 s"), 0U) << failure;
  }
}

TEST(Tcp, RanksMeetAtASocketThatListensAlready) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in end{};
  end.sin_family = AF_INET;
  end.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof end;
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&end), length), 0);
  ASSERT_EQ(::listen(listener, 4), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&end), &length), 0);
  const auto found = over_tcp(
      3, 30s,
      [](Communicator& communicator) {
        const int mine = communicator.rank();
        EXPECT_EQ(communicator.gather(std::as_bytes(std::span(&mine, 1))).size(), 3U);
      },
      [&](TcpOptions& options) {
        options.file.clear();
        if (options.rank == 0) {
          options.listener = listener;
        } else {
          options.port = ntohs(end.sin_port);
        }
      });
  for (const std::string& failure : found) EXPECT_EQ(failure, "");
  TcpOptions second;
  second.rank = 1;
  second.ranks = 2;
  second.port = 1;
  second.listener = 0;
  test::expect_invalid({"listener", "0", "every rank but 0"}, [&] { tcp_communicator(second); });
}

TEST(Tcp, MessagesOfDifferentSizesAreNamed) {
  const auto found = over_tcp(2, 30s, [](Communicator& communicator) {
    std::array<std::byte, 8> bytes{};
    if (communicator.rank() == 0) {
      communicator.send(1, 0, bytes).wait();
      communicator.receive(1, 0, bytes).wait();
    } else {
      communicator.receive(0, 0, std::span(bytes).first(4)).wait();
    }
  });
  for (const std::string& failure : found) EXPECT_EQ(failure, "rank 0 sends 8 bytes, and rank 1 expects 4");
}

TEST(Tcp, RanksThatDoNotMeetAreNamed) {
  const auto absent = over_tcp(2, 200ms, [](Communicator&) {}, [](TcpOptions& options) { options.ranks = 3; });
  EXPECT_EQ(absent[0], "rank 2 did not come in time");
  EXPECT_EQ(absent[1].find("rank 0 "), 0U) << absent[1];
  const auto different =
      over_tcp(2, 300ms, [](Communicator&) {}, [](TcpOptions& options) { options.ranks += options.rank; });
  EXPECT_EQ(different[0], "rank 1 was started as one of 3 ranks, rank 0 as one of 2");
}

TEST(Tcp, TheEnvironmentIsChecked) {
  const auto set = [](const char* name, const char* value) { ::setenv(name, value, 1); };
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) ::unsetenv(name);
  test::expect_invalid({"WORLD_SIZE", "environment"}, [] { tcp_options_from_environment(); });
  set("WORLD_SIZE", "4");
  set("RANK", "4");
  test::expect_invalid({"RANK", "4", "0 to 3"}, [] { tcp_options_from_environment(); });
  set("RANK", "3");
  set("MASTER_PORT", "no");
  test::expect_invalid({"MASTER_PORT", "no"}, [] { tcp_options_from_environment(); });
  set("MASTER_PORT", "29500");
  const TcpOptions options = tcp_options_from_environment();
  EXPECT_EQ(options.address, "127.0.0.1");
  EXPECT_EQ(options.port, 29501);
  EXPECT_EQ(options.rank, 3);
  EXPECT_EQ(options.ranks, 4);
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_PORT"}) ::unsetenv(name);
  test::expect_invalid({"port", "0"}, [] { tcp_communicator({}); });
  TcpOptions bad;
  bad.rank = 1;
  test::expect_invalid({"rank", "1", "0 to 0"}, [&] { tcp_communicator(bad); });
}

}  // namespace
}  // namespace tessera
