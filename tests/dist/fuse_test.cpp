// Fused parts have the pairs of the parts that they are made of.
#include "dist/fuse.h"

#include <gtest/gtest.h>

#include <array>

namespace tessera {
namespace {

using Kind = SequenceLayout::Kind;

struct Case {
  Mask mask;
  bool fuses;  // into one part for each pair of ranks
};

TEST(Fuse, KeepsThePairsAndTheRows) {
  const Mask blocks = Mask::blocks(block_patterns::random({640, 640, 32, 64}, 0.4, 9));
  const Mask odd = Mask::blocks(block_patterns::random({640, 640, 48, 144}, 0.4, 9));
  const std::array cases{Case{Mask::none(), true},
                         Case{Mask::causal(), true},
                         Case{Mask::window(100, 5), false},
                         Case{blocks, true},
                         Case{odd, true},
                         Case{Mask::causal() & blocks, true},
                         Case{Mask::causal() & odd, true},
                         Case{Mask::window(90, 0) & blocks, false}};
  for (const Case& row : cases) {
    Problem problem;
    problem.batch = 2;
    problem.seq_q = problem.seq_k = 640;
    problem.heads_q = 2;
    problem.dim_qk = problem.dim_v = 8;
    problem.mask = row.mask;
    for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
      for (const int ranks : {2, 3, 5}) {
        DistributedOptions options;
        options.layout = layout;
        options.schedule = RingSchedule::ring;
        const internal::RingGroup group(problem, Pass::forward, ranks, options);
        for (int rank = 0; rank < ranks; ++rank) {
          for (int owner = 0; owner < ranks; ++owner) {
            SCOPED_TRACE(row.mask.describe() + ", " + std::string(layout_name(layout)) + " over " +
                         std::to_string(ranks) + ", rank " + std::to_string(rank) + " on " + std::to_string(owner));
            const auto parts = group.parts(rank, owner);
            const auto fused = internal::fused_parts(group, rank, owner);
            TileSchedule::Counts expected;
            TileSchedule::Counts found;
            internal::count(parts, expected);
            internal::count(fused, found);
            EXPECT_EQ(found.pairs, expected.pairs);
            EXPECT_EQ(fused.empty(), parts.empty());
            EXPECT_LE(fused.size(), row.fuses ? 1 : parts.size());
            for (const internal::SubProblem& part : fused) {
              EXPECT_NO_THROW(validate(part.problem));
              EXPECT_EQ(part.query_rows.size(), part.problem.seq_q);
              EXPECT_EQ(part.key_rows.size(), part.problem.seq_k);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera
