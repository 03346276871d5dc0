// The routines in vectors of LANES floats: included once by each kernels_<set>.cc, which defines LANES.
//
// Labels. A cell is the rectangle of pixels between four grid points; inside it every class is a bilinear function of
// the pixel, so it lies between its corner values, and a class that is below one other class at all four corners is
// below it everywhere. Cells first lose such classes (most of them, on any real image), then are halved with the
// corners tightened to the half, losing more, until evaluating the rest at every pixel is cheaper.

#include "kernels.h"

namespace segmenter_trt {
namespace {

static_assert(kClassPadding % LANES == 0 && kAxisPadding >= LANES);

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef std::int32_t Ints __attribute__((vector_size(LANES * sizeof(std::int32_t))));

template <class Vector, class Element>
inline Vector load(const Element* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Vector, class Element>
inline void store(Element* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

inline Floats splat(float value) { return Floats{} + value; }
inline Ints splat(std::int32_t value) { return Ints{} + value; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline std::int32_t round_up(std::int32_t count) { return (count + LANES - 1) / LANES * LANES; }

inline bool any(Ints mask) {
  std::int64_t halves[LANES / 2];
  store(halves, mask);
  std::int64_t all = 0;
  for (std::int64_t half : halves) all |= half;
  return all != 0;
}

// Classes that may still win, in ascending order, with their scores at the corners of the cell: top left, top right,
// bottom left, bottom right. Lanes from `count` to the next multiple of LANES hold kPaddingScore.
struct Candidates {
  std::int32_t count;
  const float* corner[4];
  const std::int32_t* classes;
};

struct Rectangle {
  std::int32_t y_begin, y_end, x_begin, x_end;
};

// The candidates no single other one beats at all four of `tight`, the corners of a part of the cell; their arrays are
// taken from `scratch`. The one other tried is the candidate with the best worst corner.
inline Candidates prune(const Candidates& from, const float* const tight[4], float margin, Scratch& scratch) {
  const std::int32_t padded = round_up(from.count);
  Ints lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  Floats best = splat(kPaddingScore);
  Ints best_at = splat(0);
  for (std::int32_t k = 0; k < padded; k += LANES) {
    const Floats worst = smaller(smaller(load<Floats>(tight[0] + k), load<Floats>(tight[1] + k)),
                                 smaller(load<Floats>(tight[2] + k), load<Floats>(tight[3] + k)));
    const Ints better = worst > best;
    best = better ? worst : best;
    best_at = better ? lane + k : best_at;
  }
  float rival_score = best[0];
  std::int32_t rival = best_at[0];
  for (int i = 1; i < LANES; ++i) {
    if (best[i] > rival_score) rival_score = best[i], rival = best_at[i];
  }

  const std::int32_t capacity = padded + LANES;
  float* const scores = scratch.scores;
  float* const corner[4] = {scores, scores + capacity, scores + 2 * capacity, scores + 3 * capacity};
  std::int32_t* const classes = scratch.classes;
  scratch.scores += 4 * capacity;
  scratch.classes += capacity;

  Floats least[4];
  for (int i = 0; i < 4; ++i) least[i] = splat(tight[i][rival] - margin);
  std::int32_t count = 0;
  for (std::int32_t k = 0; k < padded; k += LANES) {
    const Ints kept = (load<Floats>(tight[0] + k) >= least[0]) | (load<Floats>(tight[1] + k) >= least[1]) |
                      (load<Floats>(tight[2] + k) >= least[2]) | (load<Floats>(tight[3] + k) >= least[3]);
    if (!any(kept)) continue;
    std::int32_t flags[LANES];
    store(flags, kept);
    // without a branch: which lanes stay is as good as random
    for (int i = 0; i < LANES; ++i) {
      classes[count] = k + i;
      count -= flags[i];
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (std::int32_t k = 0; k < count; ++k) corner[i][k] = from.corner[i][classes[k]];
    store(corner[i] + count, splat(kPaddingScore));
  }
  for (std::int32_t k = 0; k < count; ++k) classes[k] = from.classes[classes[k]];
  return {count, {corner[0], corner[1], corner[2], corner[3]}, classes};
}

// Labels of LANES pixels from x. Those past x_end are another rectangle's, written later, because rectangles come left
// to right; only past the row's end is memory left alone.
template <class Label, class Labels>
inline void store_labels(Label* row, std::int32_t x, std::int32_t width, Labels labels) {
  if (x + LANES <= width) {
    store(row + x, labels);
  } else {
    for (std::int32_t i = 0; i < width - x; ++i) row[x + i] = labels[i];
  }
}

// Every candidate at every pixel.
template <class Label>
inline void evaluate(const CellRow<Label>& cell_row, const Rectangle& part, const Candidates& candidates,
                     const Scratch& scratch) {
  typedef Label Labels __attribute__((vector_size(LANES * sizeof(Label))));
  const std::int32_t padded = round_up(candidates.count);
  float* const left = scratch.scores;
  float* const rise = left + padded;
  for (std::int32_t y = part.y_begin; y < part.y_end; ++y) {
    Label* const labels = cell_row.labels + static_cast<std::int64_t>(y) * cell_row.width;
    if (candidates.count == 1) {
      const Labels winner = __builtin_convertvector(splat(candidates.classes[0]), Labels);
      for (std::int32_t x = part.x_begin; x < part.x_end; x += LANES) store_labels(labels, x, cell_row.width, winner);
      continue;
    }
    const Floats fy = splat(cell_row.fy[y]);
    for (std::int32_t k = 0; k < padded; k += LANES) {
      const Floats a = load<Floats>(candidates.corner[0] + k);
      const Floats b = load<Floats>(candidates.corner[1] + k);
      const Floats l = a + (load<Floats>(candidates.corner[2] + k) - a) * fy;
      const Floats r = b + (load<Floats>(candidates.corner[3] + k) - b) * fy;
      store(left + k, l);
      store(rise + k, r - l);
    }
    for (std::int32_t x = part.x_begin; x < part.x_end; x += LANES) {
      const Floats fx = load<Floats>(cell_row.fx + x);
      Floats best = splat(left[0]) + splat(rise[0]) * fx;
      Ints winner = splat(candidates.classes[0]);
      for (std::int32_t k = 1; k < candidates.count; ++k) {
        const Floats score = splat(left[k]) + splat(rise[k]) * fx;
        const Ints better = score > best;
        best = better ? score : best;
        winner = better ? splat(candidates.classes[k]) : winner;
      }
      store_labels(labels, x, cell_row.width, __builtin_convertvector(winner, Labels));
    }
  }
}

// Scores of the candidates at the four corner pixels of `part`, into tight[0..3].
template <class Label>
inline void tighten(const CellRow<Label>& cell_row, const Rectangle& part, const Candidates& candidates,
                    float* const tight[4]) {
  const Floats fy0 = splat(cell_row.fy[part.y_begin]);
  const Floats fy1 = splat(cell_row.fy[part.y_end - 1]);
  const Floats fx0 = splat(cell_row.fx[part.x_begin]);
  const Floats fx1 = splat(cell_row.fx[part.x_end - 1]);
  const std::int32_t padded = round_up(candidates.count);
  for (std::int32_t k = 0; k < padded; k += LANES) {
    const Floats a = load<Floats>(candidates.corner[0] + k);
    const Floats b = load<Floats>(candidates.corner[1] + k);
    const Floats c = load<Floats>(candidates.corner[2] + k) - a;
    const Floats d = load<Floats>(candidates.corner[3] + k) - b;
    const Floats l0 = a + c * fy0;
    const Floats r0 = b + d * fy0 - l0;
    const Floats l1 = a + c * fy1;
    const Floats r1 = b + d * fy1 - l1;
    store(tight[0] + k, l0 + r0 * fx0);
    store(tight[1] + k, l0 + r0 * fx1);
    store(tight[2] + k, l1 + r1 * fx0);
    store(tight[3] + k, l1 + r1 * fx1);
  }
}

// Whether halving a rectangle is likely to save more evaluations than it costs; the numbers were found by measuring.
inline bool worth_halving(std::int32_t height, std::int32_t width, std::int32_t count) {
  if (count == 1 || (height == 1 && width <= LANES)) return false;
  const std::int64_t evaluations = std::int64_t{height} * (round_up(width) / LANES) * count;
  return evaluations >= 80 * (round_up(count) / LANES + 1);
}

template <class Label>
void label_rectangle(const CellRow<Label>& cell_row, const Rectangle& whole, const Candidates& candidates,
                     const Scratch& scratch, int depth) {
  const std::int32_t height = whole.y_end - whole.y_begin;
  const std::int32_t width = whole.x_end - whole.x_begin;
  if (depth == kMaxDepth || !worth_halving(height, width, candidates.count)) {
    evaluate(cell_row, whole, candidates, scratch);
    return;
  }
  Rectangle halves[2] = {whole, whole};
  if (height >= width || width <= LANES) {
    halves[0].y_end = halves[1].y_begin = whole.y_begin + height / 2;
  } else {
    halves[0].x_end = halves[1].x_begin = whole.x_begin + round_up(width / 2);
  }
  for (const Rectangle& half : halves) {
    const std::int32_t padded = round_up(candidates.count);
    // the tightened corners lie past what prune keeps, where the halves' own halves may overwrite them
    Scratch free = scratch;
    float* const corners = scratch.scores + 4 * (padded + LANES);
    float* const tight[4] = {corners, corners + padded, corners + 2 * padded, corners + 3 * padded};
    tighten(cell_row, half, candidates, tight);
    const Candidates kept = prune(candidates, tight, cell_row.margin, free);
    // near ties everywhere: smaller parts would not part them either
    const bool stuck = kept.count > candidates.count - candidates.count / 8;
    label_rectangle(cell_row, half, kept, free, stuck ? kMaxDepth : depth + 1);
  }
}

template <class Label>
void label_cells(const CellRow<Label>& cell_row) {
  for (std::int32_t i = 0; i < cell_row.cell_count; ++i) {
    const Cell& cell = cell_row.cells[i];
    const std::int64_t low = std::int64_t{cell.low} * cell_row.padded;
    const std::int64_t high = std::int64_t{cell.high} * cell_row.padded;
    const Candidates all = {
        cell_row.K,
        {cell_row.top + low, cell_row.top + high, cell_row.bottom + low, cell_row.bottom + high},
        cell_row.classes,
    };
    Scratch scratch = cell_row.scratch;
    const Candidates kept = prune(all, all.corner, cell_row.margin, scratch);
    label_rectangle(cell_row, {cell_row.y_begin, cell_row.y_end, cell.begin, cell.end}, kept, scratch, 1);
  }
}

void normalize_row(const std::uint8_t* pixels, std::int64_t W, const float scale[3], const float shift[3], float* out,
                   std::int64_t plane) {
  // colours are taken apart a short run at a time, so that the compiler sees plain loops to vectorise
  constexpr int kRun = 64;
  std::int64_t x = 0;
  for (; x + kRun <= W; x += kRun) {
    std::uint8_t colours[3][kRun];
    for (int i = 0; i < kRun; ++i) {
      for (int c = 0; c < 3; ++c) colours[c][i] = pixels[3 * (x + i) + c];
    }
    for (int c = 0; c < 3; ++c) {
      for (int i = 0; i < kRun; ++i) out[c * plane + x + i] = static_cast<float>(colours[c][i]) * scale[c] + shift[c];
    }
  }
  for (; x < W; ++x) {
    for (int c = 0; c < 3; ++c) out[c * plane + x] = static_cast<float>(pixels[3 * x + c]) * scale[c] + shift[c];
  }
}

constexpr Kernels kKernels = {label_cells<std::uint8_t>, label_cells<std::int16_t>, normalize_row};

}  // namespace
}  // namespace segmenter_trt
