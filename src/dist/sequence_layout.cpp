#include "tessera/sequence_layout.h"

#include <algorithm>

#include "core/fail.h"
#include "dist/tensor_ops.h"
#include "tessera/mask.h"

namespace tessera {

namespace {

// Part `index` of `parts` parts whose sizes differ by one at most.
Range part_of(std::int64_t length, std::int64_t index, std::int64_t parts) {
  const auto cut = [&](std::int64_t i) { return length / parts * i + length % parts * i / parts; };
  return {cut(index), cut(index + 1)};
}

void append(std::vector<Stripe>& pieces, Range range) {
  if (range.empty()) {
    return;
  }
  if (!pieces.empty() && pieces.back().position(pieces.back().count) == range.begin) {
    pieces.back().count += range.size();
    return;
  }
  pieces.push_back({range.begin, range.size(), 1});
}

void check_views(const ConstTensorView& whole, const ConstTensorView& part, const SequenceLayout& layout, int rank,
                 int axis) {
  const auto at = static_cast<std::size_t>(axis);
  if (axis < 0 || axis >= whole.rank || whole.shape[at] != layout.length()) {
    internal::fail_argument("whole", whole.describe(),
                            std::to_string(layout.length()) + " tokens along axis " + std::to_string(axis));
  }
  ConstTensorView expected = whole;
  expected.shape[at] = layout.tokens(rank);
  if (part.rank != whole.rank || part.dtype != whole.dtype || part.shape != expected.shape) {
    internal::fail_argument("part", part.describe(),
                            std::to_string(layout.tokens(rank)) + " tokens along axis " + std::to_string(axis) +
                                ", and otherwise the shape and dtype of " + whole.describe());
  }
  for (const auto& [name, view] : {std::pair{"whole", &whole}, std::pair{"part", &part}}) {
    if (view->device.kind != DeviceKind::cpu) {
      internal::fail_argument(std::string(name) + " device", "cuda", "cpu");
    }
  }
}

// Calls body(stripe of the whole sequence, the same tokens in the rank's part).
template <class Body>
void for_each_piece(const SequenceLayout& layout, int rank, const Body& body) {
  std::int64_t local = 0;
  for (const Stripe& piece : layout.pieces(rank)) {
    body(piece, Stripe{local, piece.count, 1});
    local += piece.count;
  }
}

}  // namespace

std::string_view layout_name(SequenceLayout::Kind kind) {
  switch (kind) {
    case SequenceLayout::Kind::contiguous:
      return "contiguous";
    case SequenceLayout::Kind::zigzag:
      return "zigzag";
    case SequenceLayout::Kind::striped:
      return "striped";
  }
  return "unknown";
}

SequenceLayout::SequenceLayout(Kind kind, std::int64_t length, int ranks)
    : kind_(kind), length_(length), ranks_(ranks) {
  if (length < 0) {
    internal::fail_argument("length of a sequence layout", length, "0 or more");
  }
  if (ranks < 1) {
    internal::fail_argument("ranks of a sequence layout", std::int64_t{ranks}, "1 or more");
  }
}

std::vector<Stripe> SequenceLayout::pieces(int rank) const {
  if (rank < 0 || rank >= ranks_) {
    internal::fail_argument("rank", std::int64_t{rank}, "0 to " + std::to_string(ranks_ - 1));
  }
  std::vector<Stripe> pieces;
  switch (kind_) {
    case Kind::contiguous:
      append(pieces, part_of(length_, rank, ranks_));
      break;
    case Kind::zigzag:
      append(pieces, part_of(length_, rank, std::int64_t{2} * ranks_));
      append(pieces, part_of(length_, std::int64_t{2} * ranks_ - 1 - rank, std::int64_t{2} * ranks_));
      break;
    case Kind::striped:
      if (rank < length_) {
        pieces.push_back({rank, internal::ceil_div(length_ - rank, ranks_), ranks_});
      }
      break;
  }
  return pieces;
}

std::int64_t SequenceLayout::tokens(int rank) const {
  std::int64_t tokens = 0;
  for (const Stripe& piece : pieces(rank)) {
    tokens += piece.count;
  }
  return tokens;
}

std::int64_t SequenceLayout::longest_tokens() const {
  std::int64_t longest = 0;
  for (int rank = 0; rank < ranks_; ++rank) {
    longest = std::max(longest, tokens(rank));
  }
  return longest;
}

void shard(const SequenceLayout& layout, int rank, const ConstTensorView& whole, const TensorView& part, int axis) {
  check_views(whole, part, layout, rank, axis);
  for_each_piece(layout, rank, [&](const Stripe& from, const Stripe& to) {
    internal::convert(internal::slice(whole, axis, from), internal::slice(part, axis, to));
  });
}

void unshard(const SequenceLayout& layout, int rank, const ConstTensorView& part, const TensorView& whole, int axis) {
  check_views(whole, part, layout, rank, axis);
  for_each_piece(layout, rank, [&](const Stripe& to, const Stripe& from) {
    internal::convert(internal::slice(part, axis, from), internal::slice(whole, axis, to));
  });
}

}  // namespace tessera
