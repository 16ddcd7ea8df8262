#include "tessera/mask.h"

#include <algorithm>
#include <utility>

#include "core/fail.h"

namespace tessera {

Mask Mask::causal(Alignment alignment) { return window(kUnlimited, 0, alignment); }

Mask Mask::window(std::int64_t left, std::int64_t right, Alignment alignment) {
  if (left < 0) {
    internal::fail_argument("window left", left, "0 or more, or unlimited");
  }
  if (right < 0) {
    internal::fail_argument("window right", right, "0 or more, or unlimited");
  }
  Mask mask;
  mask.left_ = left;
  mask.right_ = right;
  mask.alignment_ = alignment;
  return mask;
}

Mask Mask::segments(Segments segments) {
  Mask mask;
  mask.segments_ = std::move(segments);
  return mask;
}

Mask Mask::blocks(BlockMask blocks) {
  Mask mask;
  mask.blocks_ = std::move(blocks);
  return mask;
}

Mask Mask::operator&(const Mask& other) const {
  if (has_band() && other.has_band() && !(alignment_ == other.alignment_)) {
    internal::fail_argument("alignment of a mask intersection", "two different alignments", "bands with the same one");
  }
  if (has_segments() && other.has_segments() && !(segments_ == other.segments_)) {
    internal::fail_argument("segments of a mask intersection", "two different sets", "one set, or two equal ones");
  }
  Mask result;
  result.left_ = std::min(left_, other.left_);
  result.right_ = std::min(right_, other.right_);
  result.alignment_ = has_band() ? alignment_ : other.alignment_;
  result.segments_ = has_segments() ? segments_ : other.segments_;
  result.blocks_ = blocks_ ? blocks_ : other.blocks_;
  if (blocks_ && other.blocks_) {
    result.blocks_ = *blocks_ & *other.blocks_;
  }
  return result;
}

Mask Mask::with_alignment(Alignment alignment) const {
  Mask result = *this;
  result.alignment_ = alignment;
  return result;
}

std::string Mask::describe() const {
  std::string text;
  if (has_band()) {
    const auto side = [](std::int64_t width) { return width == kUnlimited ? "unlimited" : std::to_string(width); };
    const bool causal = left_ == kUnlimited && right_ == 0;
    text = causal ? "causal" : "window(" + side(left_) + ", " + side(right_) + ")";
  }
  if (alignment_.kind == Alignment::Kind::top_left) {
    text += text.empty() ? "top-left" : " top-left";
  } else if (alignment_.kind == Alignment::Kind::at) {
    text += (text.empty() ? "diagonal " : " diagonal ") + std::to_string(alignment_.diagonal);
  }
  if (has_segments()) {
    text += text.empty() ? "segments" : " & segments";
  }
  if (has_blocks()) {
    text += (text.empty() ? "" : " & ") + block_mask().describe();
  }
  return text.empty() ? "none" : text;
}

}  // namespace tessera
