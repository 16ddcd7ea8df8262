// Block patterns in words: "butterfly", "random:0.125", or drawn block by block.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "tessera/problem.h"

namespace tessera::cli {

// A pattern that waits for its grid.
using BlockPatternMaker = std::function<BlockMask(const BlockGrid&)>;

// "NAME[:NUMBER..]", one of block_pattern_forms(); nullopt for anything else.
std::optional<BlockPatternMaker> to_block_pattern(std::string_view text);
// "butterfly[:DISTANCE], local:DISTANCE, ..."
std::string block_pattern_forms();

// Rows of x (kept) and . (dropped) with slashes between; heads are separated by commas, sequences by +.
bool is_drawn_blocks(std::string_view text);
// Throws Error(invalid_argument) when the drawing does not have the grid's rows and columns.
BlockMask drawn_blocks(const BlockGrid& grid, std::string_view text);
// The drawing of a mask whose blocks are all full.
std::string to_drawing(const BlockMask& mask);

}  // namespace tessera::cli
