// Transports between GPUs, on machines that have neither NCCL nor a GPU: what they refuse, and in which words.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/expect_error.h"
#include "tessera/distributed.h"
#include "tessera/nccl.h"
#include "tessera/plan.h"

namespace tessera {
namespace {

constexpr Device kGpu{DeviceKind::cuda, 0};

// Before anything asks for NCCL: the library is looked for once.
class Transport : public testing::Test {
 protected:
  static void SetUpTestSuite() { ::setenv("TESSERA_NCCL_LIBRARY", "libnccl-that-is-not-there.so", 1); }
};

TEST_F(Transport, NcclThatIsMissingIsNamed) {
  const auto missing = nccl_missing();
  ASSERT_TRUE(missing);
  EXPECT_NE(missing->find("libnccl-that-is-not-there.so"), std::string::npos) << *missing;
  EXPECT_NE(missing->find("TESSERA_NCCL_LIBRARY"), std::string::npos) << *missing;
  test::expect_error(ErrorCode::unsupported, {"there is no NCCL"}, [] { nccl_version(); });
  test::expect_error(ErrorCode::unsupported, {"there is no NCCL"},
                     [] { nccl_communicator(std::move(local_communicators(1)[0]), {kGpu, {}}); });
}

TEST_F(Transport, AnythingButAGpuIsRefused) {
  test::expect_invalid({"device", "cpu", "NCCL"}, [] { nccl_communicator(std::move(local_communicators(1)[0]), {}); });
  test::expect_invalid({"device", "cpu", "host memory"},
                       [] { staged_communicator(std::move(local_communicators(1)[0]), {}); });
  test::expect_invalid({"device", "cpu", "process to process"},
                       [] { copy_communicator(std::move(local_communicators(1)[0]), {}); });
  test::expect_invalid({"timeout", "0"}, [] {
    nccl_communicator(std::move(local_communicators(1)[0]), {kGpu, {std::chrono::milliseconds(0)}});
  });
  test::expect_invalid({"devices", "different kinds"}, [] { local_communicators(std::vector{kGpu, Device{}}); });
}

TEST_F(Transport, WithoutAGpuTheReasonIsTold) {
  const std::string reason = cuda_info().unavailable;
  if (reason.empty()) GTEST_SKIP() << "there is a GPU";
  test::expect_error(ErrorCode::unsupported, {reason}, [] { local_communicators(std::vector{kGpu, kGpu}); });
  test::expect_error(ErrorCode::unsupported, {reason},
                     [] { staged_communicator(std::move(local_communicators(1)[0]), kGpu); });
  test::expect_error(ErrorCode::unsupported, {"copies between processes", "rank 0", reason},
                     [] { copy_communicator(std::move(local_communicators(1)[0]), {kGpu, {}}); });
}

// Each refuses in its own words, by which it is known.
TEST_F(Transport, TheOneThatIsNamedIsTaken) {
  const auto take = [](DeviceTransport transport, Device device) {
    return device_communicator(std::move(local_communicators(1)[0]), {device, {}}, transport);
  };
  test::expect_invalid({"device", "cpu", "process to process"}, [&] { take(DeviceTransport::copy, {}); });
  test::expect_invalid({"device", "cpu", "NCCL"}, [&] { take(DeviceTransport::nccl, {}); });
  test::expect_invalid({"device", "cpu", "host memory"}, [&] { take(DeviceTransport::staged, {}); });
  test::expect_invalid({"device", "cpu", "process to process"}, [&] { take(DeviceTransport::automatic, {}); });
  const std::string reason = cuda_info().unavailable;
  if (!reason.empty()) {  // neither copies nor NCCL
    test::expect_error(ErrorCode::unsupported, {reason}, [&] { take(DeviceTransport::automatic, kGpu); });
  }
}

TEST_F(Transport, APlanForAnotherDeviceIsRefused) {
  Problem problem;
  problem.seq_q = problem.seq_k = 8;
  problem.dim_qk = problem.dim_v = 8;
  DistributedOptions options;
  options.plan.device = kGpu;
  const auto communicators = local_communicators(1);
  test::expect_invalid({"plan.device", "cuda:0", "cpu"},
                       [&] { DistributedPlan::make(problem, Pass::forward, *communicators[0], options); });
}

TEST_F(Transport, AFailureCanBeAskedFor) {
  const auto communicators = local_communicators(2);
  EXPECT_FALSE(communicators[1]->failure());
  communicators[0]->abort(std::runtime_error("enough"));
  EXPECT_EQ(communicators[1]->failure(), "rank 0 failed: enough");
}

}  // namespace
}  // namespace tessera
