#include "dist/gathered.h"

#include <algorithm>
#include <array>
#include <limits>

namespace tessera::internal {

namespace {

bool meet(Range a, Range b) { return a.begin < b.end && b.begin < a.end; }
bool meet(const Place& a, const Place& b) {
  return meet(a.batch, b.batch) && meet(a.rows, b.rows) && meet(a.heads, b.heads);
}

}  // namespace

Partial cut(const Partial& whole, const Place& place) {
  Partial part;
  part.out = slice(slice(slice(whole.out, 0, place.batch), 1, place.rows), 2, place.heads);
  if (!whole.lse.absent()) {
    part.lse = slice(slice(slice(whole.lse, 0, place.batch), 1, place.heads), 2, place.rows);
  }
  return part;
}

Gathered::Gathered(const PlaceGrid& grid, std::vector<Partial> slots, const Partial& sum, bool shared_slots,
                   int threads, void* stream)
    : slots_(std::move(slots)), sum_(sum), shared_slots_(shared_slots), threads_(threads), stream_(stream) {
  for (const Range& batch : grid.batches) {
    for (const Range& rows : grid.rows) {
      for (const Range& heads : grid.heads) {
        cells_.push_back({{batch, rows, heads}, false, 0});
      }
    }
  }
}

void Gathered::begin_with_sum() {
  for (Cell& cell : cells_) {
    cell.summed = true;
  }
}

Partial Gathered::open(const Place& place) {
  std::vector<Cell*> met;
  bool untouched = true;
  unsigned taken = 0;
  for (Cell& cell : cells_) {
    if (meet(cell.place, place)) {
      met.push_back(&cell);
      untouched = untouched && !cell.summed && cell.slots == 0;
      taken |= cell.slots;
    }
  }
  const auto clear_rest = [&](const Partial& memory) {
    for (const Cell* cell : met) {
      if (place.rows.begin > cell->place.rows.begin || place.rows.end < cell->place.rows.end) {
        clear(cut(memory, cell->place));
      }
    }
  };
  if (untouched && slots_.front().out.dtype == sum_.out.dtype) {
    clear_rest(sum_);
    for (Cell* cell : met) {
      cell->summed = true;
    }
    return cut(sum_, place);
  }
  std::size_t slot = 0;
  while (slot < slots_.size() && (taken >> slot & 1U) != 0) {
    ++slot;
  }
  if (slot == slots_.size()) {
    for (Cell* cell : met) {
      fold(*cell);
    }
    slot = 0;
  }
  clear_rest(slots_[slot]);
  for (Cell* cell : met) {
    cell->slots |= 1U << slot;
  }
  return cut(slots_[slot], place);
}

void Gathered::close() {
  if (shared_slots_) {
    for (Cell& cell : cells_) {
      fold(cell);
    }
  }
}

void Gathered::fold(Cell& cell) {
  std::vector<ConstPartial> terms;
  const auto take = [&](const Partial& whole) {
    const Partial part = cut(whole, cell.place);
    terms.push_back({part.out, part.lse});
  };
  if (cell.summed) {
    take(sum_);
  }
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if ((cell.slots >> slot & 1U) != 0) {
      take(slots_[slot]);
    }
  }
  if (cell.slots != 0) {
    combine(terms, cut(sum_, cell.place));
    cell.summed = true;
    cell.slots = 0;
  }
}

void Gathered::fold() {
  result(sum_);
  begin_with_sum();
  for (Cell& cell : cells_) {
    cell.slots = 0;
  }
  others_.clear();
}

void Gathered::result(const Partial& target) {
  for (Cell& cell : cells_) {
    const Partial part = cut(target, cell.place);
    std::vector<ConstPartial> terms;
    const auto collect = [&] {
      terms.clear();
      const auto take = [&](const Partial& whole) {
        const Partial term = cut(whole, cell.place);
        terms.push_back({term.out, term.lse});
      };
      if (cell.summed) {
        take(sum_);
      }
      for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
        if ((cell.slots >> slot & 1U) != 0) {
          take(slots_[slot]);
        }
      }
      for (const Partial& other : others_) {
        take(other);
      }
    };
    collect();
    // On the CPU a third term would be added to what the target's dtype has rounded.
    if (terms.size() > (target.out.device.kind == DeviceKind::cpu ? 2 : kMostTerms)) {
      fold(cell);
      collect();
    }
    if (terms.empty()) {
      clear(part);
    } else if (terms.size() > 1 || terms.front().out.data != part.out.data) {
      combine(terms, part);
    }
  }
}

void Gathered::clear(const Partial& part) {
  fill(part.out, 0, stream_);
  if (!part.lse.absent()) {
    fill(part.lse, -std::numeric_limits<float>::infinity(), stream_);
  }
}

void Gathered::combine(std::span<const ConstPartial> terms, const Partial& target) {
  if (!target.lse.absent()) {
    merge_all(terms, target, threads_, stream_);
    return;
  }
  std::array<ConstTensorView, kMostTerms> outs;
  std::transform(terms.begin(), terms.end(), outs.begin(), [](const ConstPartial& term) { return term.out; });
  sum(std::span(outs).first(terms.size()), target.out, stream_);
}

}  // namespace tessera::internal
