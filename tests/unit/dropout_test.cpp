// Dropout is a pure function of (seed, batch, head, query, key) through Philox4x32-7.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tessera/problem.h"

namespace tessera {
namespace {

using Block = std::array<std::uint32_t, 4>;

// Written from the paper (section 4.3 and table 2 of Salmon et al.): seven rounds of two 32x32 multiplications.
Block philox(Block counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 7; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {std::uint32_t(p1 >> 32) ^ counter[1] ^ key[0], std::uint32_t(p1),
               std::uint32_t(p0 >> 32) ^ counter[3] ^ key[1], std::uint32_t(p0)};
    key = {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
  }
  return counter;
}

// The random byte of one element: an element is dropped exactly when its byte is below the threshold.
int byte_of(Dropout dropout, std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t key) {
  int dropped_from = 0;
  while (dropped_from < 256) {
    dropout.probability = (dropped_from + 1) / 256.0;
    if (!dropout_keeps(dropout, batch, head, query, key)) break;
    ++dropped_from;
  }
  return dropped_from;
}

// The 16 bytes of one block as the documentation lays them out over 64 keys: lane t holds the keys {2t, 2t+1} + 8 i.
Block block_of(const Dropout& dropout, std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t group,
               int lane) {
  Block block{};
  for (int n = 0; n < 16; ++n) {
    const std::int64_t key = 64 * group + 8 * (n / 2) + 2 * lane + n % 2;
    const int byte = byte_of(dropout, batch, head, query, key);
    block[static_cast<std::size_t>(n / 4)] |= static_cast<std::uint32_t>(byte) << (8 * (n % 4));
  }
  return block;
}

struct KnownAnswer {
  Block counter;
  std::uint64_t seed;
  Block expected;
};

// The published vectors of Philox4x32-7 (kat_vectors of Random123).
constexpr std::array<KnownAnswer, 3> kKnownAnswers = {{
    {{0, 0, 0, 0}, 0, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     0xffffffffffffffff,
     {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     0x299f31d0a4093822,
     {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
}};

TEST(Philox, TheTestsOwnGeneratorGivesThePublishedVectors) {
  for (const KnownAnswer& known : kKnownAnswers) {
    EXPECT_EQ(philox(known.counter, {std::uint32_t(known.seed), std::uint32_t(known.seed >> 32)}), known.expected);
  }
}

// The counter is (4 * (key / 64) + lane, query, head, batch), so the published vectors can be read back key by key.
TEST(Philox, PublishedVectorsThroughDropoutKeeps) {
  for (const KnownAnswer& known : kKnownAnswers) {
    Dropout dropout;
    dropout.seed = known.seed;
    const std::int64_t group = known.counter[0] / 4;
    const int lane = static_cast<int>(known.counter[0] % 4);
    EXPECT_EQ(block_of(dropout, known.counter[3], known.counter[2], known.counter[1], group, lane), known.expected);
  }
}

TEST(Dropout, EveryByteOfARangeOfKeys) {
  Dropout dropout;
  dropout.seed = 0x0123456789abcdef;
  for (const std::int64_t group : {0, 1, 7}) {
    for (int lane = 0; lane < 4; ++lane) {
      const Block expected = philox({std::uint32_t(4 * group + lane), 11, 5, 2}, {0x89abcdef, 0x01234567});
      EXPECT_EQ(block_of(dropout, 2, 5, 11, group, lane), expected);
    }
  }
}

TEST(Dropout, StartsAreAddedToPositions) {
  Dropout whole{0.5, 42, 0, 0, 0, 0};
  const Dropout part{0.5, 42, 100, 77, 3, 9};
  for (std::int64_t query = 0; query < 8; ++query) {
    for (std::int64_t key = 0; key < 200; ++key) {
      ASSERT_EQ(dropout_keeps(part, 1, 2, query, key), dropout_keeps(whole, 10, 5, query + 100, key + 77));
    }
  }
}

TEST(Dropout, ProbabilityIsRoundedTo256ths) {
  EXPECT_EQ((Dropout{0.0, 0}).threshold(), 0);
  EXPECT_EQ((Dropout{0.1, 0}).threshold(), 26);
  EXPECT_EQ((Dropout{0.5, 0}).threshold(), 128);
  EXPECT_EQ((Dropout{1.0, 0}).threshold(), 256);
  EXPECT_EQ((Dropout{0.001, 0}).threshold(), 0);
}

TEST(Dropout, NothingIsDroppedAtZeroAndEverythingAtOne) {
  for (std::int64_t key = 0; key < 512; ++key) {
    EXPECT_TRUE(dropout_keeps({0.0, 3}, 0, 0, key / 2, key));
    EXPECT_FALSE(dropout_keeps({1.0, 3}, 0, 0, key / 2, key));
  }
}

// The share of kept elements, over queries, keys, heads and batches apart, stays within five standard deviations.
TEST(Dropout, KeepRateAlongEveryAxis) {
  constexpr int kDraws = 20000;
  for (const double probability : {0.125, 0.5, 0.875}) {
    const Dropout dropout{probability, 1234};
    std::array<int, 4> kept{};
    for (std::int64_t n = 0; n < kDraws; ++n) {
      kept[0] += dropout_keeps(dropout, 0, 0, 0, n);
      kept[1] += dropout_keeps(dropout, 0, 0, n, 0);
      kept[2] += dropout_keeps(dropout, 0, n, 0, 0);
      kept[3] += dropout_keeps(dropout, n, 0, 0, 0);
    }
    const double deviation = std::sqrt(kDraws * probability * (1 - probability));
    for (const int count : kept) EXPECT_NEAR(count, kDraws * (1 - probability), 5 * deviation);
  }
}

// Neighbours along each axis, and neighbouring seeds, agree about half the time at p = 0.5.
TEST(Dropout, NeighboursAreIndependent) {
  constexpr int kDraws = 20000;
  const Dropout dropout{0.5, 77};
  const Dropout next_seed{0.5, 78};
  std::array<int, 5> agree{};
  for (std::int64_t n = 0; n < kDraws; ++n) {
    const std::int64_t query = n / 100;
    const std::int64_t key = n % 100;
    const bool keeps = dropout_keeps(dropout, 0, 0, query, key);
    agree[0] += keeps == dropout_keeps(dropout, 0, 0, query, key + 1);
    agree[1] += keeps == dropout_keeps(dropout, 0, 0, query + 1, key);
    agree[2] += keeps == dropout_keeps(dropout, 0, 1, query, key);
    agree[3] += keeps == dropout_keeps(dropout, 1, 0, query, key);
    agree[4] += keeps == dropout_keeps(next_seed, 0, 0, query, key);
  }
  for (const int count : agree) EXPECT_NEAR(count, kDraws * 0.5, 5 * std::sqrt(kDraws * 0.25));
}

}  // namespace
}  // namespace tessera
