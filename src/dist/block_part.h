// The part of a block mask that some queries and keys see, as a block mask of its own.
#pragma once

#include <functional>
#include <span>

#include "tessera/mask.h"
#include "tessera/sequence_layout.h"

namespace tessera::internal {

// Tokens are those of the pieces one after the other, whose positions ascend; sequence b is batch.begin + b of `whole`. Nothing
// is kept of pieces that `admits` says no to, by their numbers.
//
// Exact for all pieces: where the edges of blocks and pieces fall on multiples of 16 of the tokens, blocks stay blocks, of the
// largest size that divides those edges; elsewhere a block that an edge cuts has one bit for each of its pairs.
using Admits = std::function<bool(std::size_t query_piece, std::size_t key_piece)>;
BlockMask part_of_blocks(const BlockMask& whole, Range batch, std::span<const Stripe> queries,
                         std::span<const Stripe> keys, const Admits& admits);

// The mask of some of the query heads, whose block mask may have a pattern for each.
Mask mask_of_heads(const Mask& mask, Range heads);

// `mask` with these blocks in place of its own. Blocks that keep every pair are left out.
Mask with_blocks(const Mask& mask, const BlockMask& blocks);

}  // namespace tessera::internal
