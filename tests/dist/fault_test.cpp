// A rank that fails, leaves, is silent or plans something else: every other rank gets one exception that names it, in time.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cli/rank_tensors.h"
#include "support/expect_error.h"
#include "tessera/distributed.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

constexpr int kRanks = 4;
constexpr int kFaulty = 2;
constexpr auto kTimeout = 300ms;

Problem small_problem() {
  Problem problem;
  problem.seq_q = problem.seq_k = 64;
  problem.dim_qk = problem.dim_v = 8;
  problem.mask = Mask::causal();
  return problem;
}

DistributedOptions one_thread() {
  DistributedOptions options;
  options.plan.threads = 1;
  return options;
}

// What each rank's body threw; the ranks' ends are destroyed as the bodies end.
struct Outcome {
  ErrorCode code;
  std::string message;
};
std::vector<std::optional<Outcome>> outcomes(const std::function<void(Communicator&)>& body,
                                             std::chrono::milliseconds timeout) {
  auto communicators = local_communicators(kRanks, {timeout});
  std::vector<std::optional<Outcome>> found(kRanks);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<Communicator> own = std::move(communicators[rank]);
      try {
        body(*own);
      } catch (const Error& error) {
        found[rank] = {error.code(), error.what()};
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return found;
}

void expect_others_name_it(const std::vector<std::optional<Outcome>>& found, const std::string& words) {
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    if (rank == kFaulty) continue;
    ASSERT_TRUE(found[rank]) << "rank " << rank << " saw no error";
    EXPECT_EQ(static_cast<int>(found[rank]->code), static_cast<int>(ErrorCode::peer)) << found[rank]->message;
    EXPECT_EQ(found[rank]->message.find("rank 2 "), 0U) << found[rank]->message;
    EXPECT_NE(found[rank]->message.find(words), std::string::npos) << found[rank]->message;
  }
}

// Passes on to another communicator until its n-th message; then it does something else.
class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(Communicator& real, int messages, std::function<void()> fault)
      : real_(real), messages_(messages), fault_(std::move(fault)) {}
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  std::string name() const override { return "faulty"; }

 protected:
  void spread(const std::string& /*failure*/) noexcept override {}  // the dead tell nothing
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override {
    count();
    return std::make_unique<Passed>(real_.send(to, channel, bytes, stream));
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override {
    count();
    return std::make_unique<Passed>(real_.receive(from, channel, bytes, stream));
  }

 private:
  class Passed final : public PendingTransfer {
   public:
    explicit Passed(Transfer transfer) : transfer_(std::move(transfer)) {}
    void wait(void* stream) override { transfer_.wait(stream); }
    Clock::time_point finished_at() const override { return transfer_.finished_at(); }

   private:
    Transfer transfer_;
  };
  void count() {
    if (messages_-- == 0) fault_();
  }

  Communicator& real_;
  int messages_;
  std::function<void()> fault_;
};

// Both passes; the faulty rank's n-th message is `fault`.
void run_with_fault(Communicator& communicator, const cli::ProblemTensors& whole, Pass pass, int messages,
                    const std::function<void()>& fault) {
  FaultyCommunicator faulty(communicator, messages, fault);
  cli::run_on_rank(whole, pass, communicator.rank() == kFaulty ? static_cast<Communicator&>(faulty) : communicator,
                   one_thread(), false);
}

struct Death {};

// In the middle of a pass: the handshake alone is 6 messages of this rank.
TEST(Fault, ARankThatDiesIsNamed) {
  const cli::ProblemTensors whole(small_problem(), {});
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const int messages : {0, 5, 6, 8, 9, 11}) {
      SCOPED_TRACE(std::string(pass_name(pass)) + " after " + std::to_string(messages));
      const auto found = outcomes(
          [&](Communicator& communicator) {
            try {
              run_with_fault(communicator, whole, pass, messages, [] { throw Death{}; });
            } catch (const Death&) {
            }
          },
          60s);
      expect_others_name_it(found, "left");
    }
  }
}

TEST(Fault, ASilentRankIsNamedWithinTheTimeout) {
  const cli::ProblemTensors whole(small_problem(), {});
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int> others{kRanks - 1};
  const auto found = outcomes(
      [&](Communicator& communicator) {
        const auto until_the_others_are_done = [&] {
          while (others > 0) std::this_thread::sleep_for(1ms);
          throw Death{};
        };
        try {
          run_with_fault(communicator, whole, Pass::forward, 8, until_the_others_are_done);
        } catch (const Death&) {
          return;
        } catch (const Error&) {
          --others;
          throw;
        }
      },
      kTimeout);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 20 * kTimeout);
  expect_others_name_it(found, "silent for 0.3 s");
}

TEST(Fault, AWrongTensorIsNamedAndNothingIsWritten) {
  Problem problem = small_problem();
  const cli::ProblemTensors whole(problem, {});
  const auto found = outcomes(
      [&](Communicator& communicator) {
        const cli::RankTensors part(whole, SequenceLayout::Kind::zigzag, communicator.rank(), kRanks);
        DistributedPlan plan = DistributedPlan::make(problem, Pass::forward, communicator, one_thread());
        ForwardTensors tensors = part.forward();
        if (communicator.rank() == kFaulty) tensors.k.shape[1] -= 1;
        const auto* first = static_cast<const float*>(tensors.out.data);
        EXPECT_TRUE(std::isnan(*first));  // poison
        try {
          plan.run(tensors);
        } catch (const Error&) {
          EXPECT_TRUE(std::isnan(*first)) << "written by a run that failed";
          throw;
        }
      },
      60s);
  expect_others_name_it(found, "k: float32[1, 15, 1, 8]");
  ASSERT_TRUE(found[kFaulty]);
  EXPECT_EQ(found[kFaulty]->code, ErrorCode::invalid_argument);
}

TEST(Fault, ARankThatPlansSomethingElseIsNamed) {
  const auto expect_named = [](const std::function<void(Problem&, DistributedOptions&)>& change,
                               const std::string& words) {
    const auto found = outcomes(
        [&](Communicator& communicator) {
          Problem problem = small_problem();
          DistributedOptions options = one_thread();
          if (communicator.rank() == kFaulty) change(problem, options);
          DistributedPlan::make(problem, Pass::forward, communicator, options);
        },
        60s);
    expect_others_name_it(found, words);
  };
  expect_named([](Problem& problem, auto&) { problem.seq_q = 60; }, "seq 60x64");
  expect_named([](Problem& problem, auto&) { problem.mask = Mask::none(); }, "plans something else");
  expect_named([](auto&, DistributedOptions& options) { options.layout = SequenceLayout::Kind::striped; }, "striped");
  expect_named([](auto&, DistributedOptions& options) { options.ranks = 3; }, "ranks: 3");
  const auto documents = [](int boundary) {
    std::vector<std::int32_t> ids(64, 0);
    std::fill(ids.begin() + boundary, ids.end(), 1);
    return Mask::segments({ids, ids});
  };
  const auto found = outcomes(
      [&](Communicator& communicator) {
        Problem problem = small_problem();
        problem.mask = documents(communicator.rank() == kFaulty ? 31 : 32);
        DistributedPlan::make(problem, Pass::forward, communicator, one_thread());
      },
      60s);
  expect_others_name_it(found, "plans something else");
}

TEST(Fault, AFailedGroupStaysFailed) {
  auto communicators = local_communicators(2);
  communicators[0]->abort(std::runtime_error("enough"));
  std::array<std::byte, 4> bytes{};
  for (const auto& communicator : communicators) {
    test::expect_error(ErrorCode::peer, {"rank 0 failed: enough"},
                       [&] { communicator->send(1 - communicator->rank(), 0, bytes); });
  }
}

TEST(Fault, MessagesOfDifferentSizes) {
  auto communicators = local_communicators(2);
  std::array<std::byte, 8> bytes{};
  const Transfer sent = communicators[0]->send(1, 0, bytes);
  test::expect_error(ErrorCode::peer, {"rank 0 sends 8 bytes", "rank 1 expects 4"},
                     [&] { communicators[1]->receive(0, 0, std::span(bytes).first(4)); });
}

TEST(Fault, RunLocalRanksThrowsTheCauseAndNotItsEcho) {
  const auto body = [](Communicator& communicator) {
    if (communicator.rank() == 1) throw std::runtime_error("the cause");
    std::array<std::byte, 4> bytes{};
    communicator.receive(1, 0, bytes).wait();
  };
  EXPECT_THROW(
      {
        try {
          run_local_ranks(3, body);
        } catch (const std::runtime_error& error) {
          EXPECT_STREQ(error.what(), "the cause");
          throw;
        }
      },
      std::runtime_error);
}

TEST(LocalCommunicator, RefusesWhatCannotBe) {
  test::expect_invalid({"ranks", "0", "1 or more"}, [] { local_communicators(0); });
  test::expect_invalid({"timeout", "0"}, [] { local_communicators(2, {0ms}); });
  auto communicators = local_communicators(2);
  std::array<std::byte, 4> bytes{};
  test::expect_invalid({"to", "0"}, [&] { communicators[0]->send(0, 0, bytes); });
  test::expect_invalid({"from", "2"}, [&] { communicators[0]->receive(2, 0, bytes); });
  test::expect_invalid({"channel", "8"}, [&] { communicators[0]->send(1, 8, bytes); });
}

}  // namespace
}  // namespace tessera
