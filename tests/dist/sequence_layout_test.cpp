#include "tessera/sequence_layout.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "support/expect_error.h"

namespace tessera {
namespace {

using Kind = SequenceLayout::Kind;

class Layout : public ::testing::TestWithParam<Kind> {};

TEST_P(Layout, EveryPositionHasOneOwner) {
  for (const std::int64_t length : {0, 1, 5, 16, 37}) {
    for (const int ranks : {1, 2, 3, 8}) {
      const SequenceLayout layout(GetParam(), length, ranks);
      std::vector<int> owners(static_cast<std::size_t>(length), 0);
      std::int64_t longest = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        std::int64_t before = -1;
        std::int64_t tokens = 0;
        for (const Stripe& piece : layout.pieces(rank)) {
          EXPECT_GT(piece.count, 0);
          for (std::int64_t i = 0; i < piece.count; ++i, ++tokens) {
            EXPECT_GT(piece.position(i), before);
            before = piece.position(i);
            ++owners.at(static_cast<std::size_t>(before));
          }
        }
        EXPECT_EQ(layout.tokens(rank), tokens);
        EXPECT_LE(tokens, length / ranks + 2);
        longest = std::max(longest, tokens);
      }
      EXPECT_EQ(layout.longest_tokens(), longest);
      EXPECT_EQ(owners, std::vector<int>(owners.size(), 1));
    }
  }
}

TEST_P(Layout, UnshardUndoesShard) {
  constexpr std::int64_t kLength = 19;
  std::vector<float> values(2 * 3 * kLength * 2);
  std::iota(values.begin(), values.end(), 0.0F);
  const ConstTensorView tokens(values.data(), DType::float32, {2, kLength, 3, 2});
  const ConstTensorView lines(values.data(), DType::float32, {2, 3, kLength});
  for (const int ranks : {1, 4}) {
    const SequenceLayout layout(GetParam(), kLength, ranks);
    std::vector<float> tokens_back(values.size(), -1), lines_back(2 * 3 * kLength, -1);
    for (int rank = 0; rank < ranks; ++rank) {
      const std::int64_t count = layout.tokens(rank);
      std::vector<float> part(static_cast<std::size_t>(2 * count * 3 * 2));
      const TensorView token_part(part.data(), DType::float32, {2, count, 3, 2});
      shard(layout, rank, tokens, token_part);
      EXPECT_EQ(part[0], static_cast<float>(layout.pieces(rank)[0].begin * 6));
      unshard(layout, rank, token_part, TensorView(tokens_back.data(), DType::float32, {2, kLength, 3, 2}));
      const TensorView line_part(part.data(), DType::float32, {2, 3, count});
      shard(layout, rank, lines, line_part, 2);
      unshard(layout, rank, line_part, TensorView(lines_back.data(), DType::float32, {2, 3, kLength}), 2);
    }
    EXPECT_EQ(tokens_back, values);
    EXPECT_EQ(lines_back, std::vector<float>(values.begin(), values.begin() + 2 * 3 * kLength));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Layout, ::testing::Values(Kind::contiguous, Kind::zigzag, Kind::striped),
                         [](const auto& row) { return std::string(layout_name(row.param)); });

TEST(LayoutErrors, NameTheArgument) {
  test::expect_invalid({"length", "-1"}, [] { SequenceLayout(Kind::zigzag, -1, 2); });
  test::expect_invalid({"ranks", "0"}, [] { SequenceLayout(Kind::zigzag, 4, 0); });
  const SequenceLayout layout(Kind::zigzag, 8, 2);
  test::expect_invalid({"rank", "2", "0 to 1"}, [&] { layout.pieces(2); });
  std::vector<float> values(64);
  const TensorView whole(values.data(), DType::float32, {8, 2});
  test::expect_invalid({"part", "4 tokens"},
                       [&] { shard(layout, 0, whole, TensorView(values.data(), DType::float32, {3, 2}), 0); });
  test::expect_invalid({"part", "float16"},
                       [&] { shard(layout, 0, whole, TensorView(values.data(), DType::float16, {4, 2}), 0); });
  test::expect_invalid({"part"},
                       [&] { shard(layout, 0, whole, TensorView(values.data(), DType::float32, {4, 3}), 0); });
}

}  // namespace
}  // namespace tessera
