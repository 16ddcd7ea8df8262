#include "masks.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "bool_mask.h"
#include "refuse.h"
#include "tensors.h"
#include "tessera/block_mask.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

// A key number for each token of each sequence: its range has 1, what is before and after it 0 and 2.
nb::tuple segments_of(const std::vector<Range>& keys, std::int64_t seq_q, std::int64_t seq_k) {
  nb::list query_ids;
  nb::list key_ids;
  for (const Range& range : keys) {
    for (std::int64_t i = 0; i < seq_q; ++i) {
      query_ids.append(1);
    }
    for (std::int64_t j = 0; j < seq_k; ++j) {
      key_ids.append(j < range.begin ? 0 : j < range.end ? 1 : 2);
    }
  }
  return nb::make_tuple(query_ids, key_ids);
}

// The options that mean the same as a boolean mask: of a band where it is one, unless other options would move with it.
nb::dict options_of_mask(const Array& mask, nb::handle q, nb::handle k, bool as_band) {
  const ConstTensorView queries = input_of(q, "q").view;
  const ConstTensorView keys = input_of(k, "k").view;
  if (queries.rank != 4 || keys.rank != 4) {
    refuse("mask", "a boolean tensor with q " + queries.describe(), "q [batch, seq, heads, dim]");
  }
  const std::int64_t seq_q = queries.shape[1];
  const std::int64_t seq_k = keys.shape[1];
  nb::dict options;
  const auto band =
      as_band ? band_of(mask, queries.shape[0], queries.shape[2], seq_q, seq_k) : std::optional<BandMask>();
  if (!band) {
    options["blocks"] = blocks_of(mask, queries.shape[0], queries.shape[2], {.queries = seq_q, .keys = seq_k});
    return options;
  }
  if (band->left || band->right) {
    options["window"] = nb::make_tuple(band->left, band->right);
    options["alignment"] = band->diagonal;
  }
  const auto is_whole = [seq_k](const Range& range) { return range == Range{0, seq_k}; };
  const auto is_prefix = [](const Range& range) { return range.begin == 0; };
  if (std::all_of(band->keys.begin(), band->keys.end(), is_whole)) {
    return options;
  }
  if (std::all_of(band->keys.begin(), band->keys.end(), is_prefix)) {
    nb::list lengths;
    for (const Range& range : band->keys) {
      lengths.append(range.end);
    }
    options["key_lengths"] = lengths;
  } else {
    options["segments"] = segments_of(band->keys, seq_q, seq_k);
  }
  return options;
}

Array boolean_of(const nb::object& given, const char* name) {
  Array array;
  if (!nb::try_cast<Array>(given, array)) {
    refuse(name, nb::repr(given).c_str(), "a boolean tensor");
  }
  return array;
}

nb::bytes bytes_of(const BlockMask& mask) {
  const std::vector<std::byte> bytes = mask.to_bytes();
  return nb::bytes(bytes.data(), bytes.size());
}

BlockMask block_mask_of(const nb::bytes& bytes) {
  return BlockMask::from_bytes({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
}

constexpr const char* kBlockMaskDoc =
    R"(Which blocks of (query, key) pairs attend, for each sequence and head or for all of them; immutable.

from_boolean  mask bool [batch or 1, heads or 1, seq_q, seq_k], true where the pair attends; block sizes are multiples
              of 16
from_blocks   kept bool [batch or 1, heads or 1, block rows, block columns], true where a whole block attends
draw          one character a block of one (sequence, head): '#' whole, '+' in part, '.' not at all
density       kept blocks over all blocks
&, |          the pairs of both, or of either; grids must be equal)";

}  // namespace

void define_masks(nb::module_& module) {
  nb::class_<BlockMask>(module, "BlockMask", kBlockMaskDoc)
      .def_static(
          "from_boolean",
          [](const nb::object& mask, std::int64_t block_q, std::int64_t block_k) {
            return blocks_of(boolean_of(mask, "mask"), block_q, block_k);
          },
          nb::arg("mask").none(), nb::arg("block_q") = 128, nb::arg("block_k") = 128)
      .def_static(
          "from_blocks",
          [](const nb::object& kept, std::int64_t queries, std::int64_t keys, std::int64_t block_q,
             std::int64_t block_k) {
            return blocks_of_grid(boolean_of(kept, "kept"), {queries, keys, block_q, block_k});
          },
          nb::arg("kept").none(), nb::arg("queries"), nb::arg("keys"), nb::arg("block_q") = 128,
          nb::arg("block_k") = 128)
      .def_static("from_bytes", &block_mask_of, nb::arg("data"))
      .def("to_bytes", &bytes_of)
      .def("__getstate__", &bytes_of)
      .def("__setstate__", [](BlockMask& self, const nb::bytes& bytes) { new (&self) BlockMask(block_mask_of(bytes)); })
      .def_prop_ro("batch", &BlockMask::batch)
      .def_prop_ro("heads", &BlockMask::heads)
      .def_prop_ro("queries", [](const BlockMask& self) { return self.grid().queries; })
      .def_prop_ro("keys", [](const BlockMask& self) { return self.grid().keys; })
      .def_prop_ro("block_q", [](const BlockMask& self) { return self.grid().block_q; })
      .def_prop_ro("block_k", [](const BlockMask& self) { return self.grid().block_k; })
      .def_prop_ro("kept_blocks", &BlockMask::kept_blocks)
      .def_prop_ro("density", &BlockMask::density)
      .def("draw", &BlockMask::draw, nb::arg("pattern") = 0, nb::arg("most") = 64)
      .def("__and__", &BlockMask::operator&)
      .def("__or__", &BlockMask::operator|)
      .def("__eq__",
           [](const BlockMask& self, const nb::object& other) {
             return nb::isinstance<BlockMask>(other) && self == nb::cast<const BlockMask&>(other);
           })
      .def("__hash__", [](const BlockMask& self) { return nb::hash(bytes_of(self)); })
      .def("__repr__", &BlockMask::describe);
  module.def("options_of_mask", &options_of_mask, nb::arg("mask"), nb::arg("q"), nb::arg("k"), nb::arg("as_band"));
}

}  // namespace tessera::python
