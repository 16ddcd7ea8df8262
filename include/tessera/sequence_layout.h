// Which positions of a sequence each rank owns.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tessera/tensor_view.h"

namespace tessera {

// Positions begin, begin + stride, ..., `count` of them.
struct Stripe {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t stride = 1;
  std::int64_t position(std::int64_t index) const { return begin + index * stride; }
  bool operator==(const Stripe&) const = default;
};

// How `length` positions are dealt to `ranks`. No length has to be divisible by anything; a rank may own nothing.
class SequenceLayout {
 public:
  enum class Kind : std::uint8_t {
    contiguous,  // rank r owns part r of G
    zigzag,      // rank r owns parts r and 2G - 1 - r of 2G: under a causal mask all ranks have the same work
    striped,     // rank r owns r, r + G, r + 2G, ... (Brandon et al., "Striped Attention", arXiv 2311.09431)
  };

  // Throws Error(invalid_argument) for a negative length or less than one rank.
  SequenceLayout(Kind kind, std::int64_t length, int ranks);

  Kind kind() const { return kind_; }
  std::int64_t length() const { return length_; }
  int ranks() const { return ranks_; }

  // The positions of a rank in the order of its memory, which is ascending, as one or two stripes without gaps in that
  // order. Stripes are never empty. Throws Error for a rank that does not exist.
  std::vector<Stripe> pieces(int rank) const;
  std::int64_t tokens(int rank) const;
  // The most tokens that any rank owns.
  std::int64_t longest_tokens() const;

  bool operator==(const SequenceLayout&) const = default;

 private:
  Kind kind_;
  std::int64_t length_;
  int ranks_;
};

std::string_view layout_name(SequenceLayout::Kind kind);

// Copies the rank's positions of `whole` along `axis` into `part`, or back. For [batch, seq, heads, dim] tensors the axis
// is 1, for LSE [batch, heads, seq] 2. Other extents and the dtype must agree. On the CPU.
void shard(const SequenceLayout& layout, int rank, const ConstTensorView& whole, const TensorView& part, int axis = 1);
void unshard(const SequenceLayout& layout, int rank, const ConstTensorView& part, const TensorView& whole,
             int axis = 1);

}  // namespace tessera
