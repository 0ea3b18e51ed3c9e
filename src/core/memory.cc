#include "core/memory.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "bsfa/limits.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

// From the first byte to the end of the last element; empty where there is nothing.
struct Span {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
};

Span span_of(const Memory& view) {
  if (view.data == nullptr) return {};
  std::int64_t last = 0;
  for (int axis = 0; axis < view.rank; ++axis) last += (view.shape[axis] - 1) * view.stride[axis];
  const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
  return {begin, begin + static_cast<std::uintptr_t>((last + 1) * view.element_bytes)};
}

bool intersect(const Span& a, const Span& b) { return a.begin < b.end && b.begin < a.end; }

// One step of the way from a view's first byte to any other of its elements.
struct Step {
  std::int64_t bytes = 0;
  std::int64_t times = 0;  // at most; at least 0
};

// A handful of steps; by insertion.
void sort_largest_first(Step* steps, int count) {
  for (int n = 1; n < count; ++n) {
    for (int m = n; m > 0 && steps[m - 1].bytes < steps[m].bytes; --m) {
      std::swap(steps[m - 1], steps[m]);
    }
  }
}

// A view as runs of bytes at the sums of steps, largest first.
struct Runs {
  std::uintptr_t begin = 0;  // 0: there is nothing
  std::int64_t bytes = 0;    // of a run
  Step steps[4];
  int num_steps = 0;
  std::int64_t span = 0;  // first byte to the end of the last run
};

Runs runs_of(const Memory& view) {
  Runs runs;
  if (view.data == nullptr) return runs;
  runs.begin = reinterpret_cast<std::uintptr_t>(view.data);
  runs.bytes = view.element_bytes;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] > 1 && view.stride[axis] > 0) {
      runs.steps[runs.num_steps++] = {view.stride[axis] * view.element_bytes, view.shape[axis] - 1};
    }
  }
  sort_largest_first(runs.steps, runs.num_steps);
  // Elements that follow each other without a gap are one run.
  while (runs.num_steps > 0 && runs.steps[runs.num_steps - 1].bytes == runs.bytes) {
    runs.bytes *= runs.steps[--runs.num_steps].times + 1;
  }
  runs.span = runs.bytes;
  for (int n = 0; n < runs.num_steps; ++n) runs.span += runs.steps[n].bytes * runs.steps[n].times;
  return runs;
}

// Whether a sum of steps, each taken 0 to `times` times, lies in [low, high]. `effort` bounds the
// search; when it is used up, the answer is yes.
bool reaches(const Step* steps, int count, std::int64_t rest, std::int64_t low, std::int64_t high,
             int* effort) {
  if (high < 0 || low > rest) return false;
  if (low <= 0) return true;  // by taking no step any more
  if (count == 0) return false;
  if (--*effort < 0) return true;
  const Step step = steps[0];
  rest -= step.bytes * step.times;
  const std::int64_t least =
      low > rest ? (low - rest + step.bytes - 1) / step.bytes : std::int64_t{0};
  const std::int64_t most = std::min(step.times, high / step.bytes);
  for (std::int64_t n = least; n <= most; ++n) {
    const std::int64_t at = n * step.bytes;
    if (reaches(steps + 1, count - 1, rest, low - at, high - at, effort)) return true;
  }
  return false;
}

bool meet(const Runs& a, const Runs& b) {
  if (a.begin == 0 || b.begin == 0) return false;
  // Spans are at most kMaxSpanBytes, so that what wraps here is no neighbour.
  const auto distance = static_cast<std::int64_t>(b.begin - a.begin);
  if (distance >= a.span || distance <= -b.span) return false;
  // An element of a at a.begin + x and one of b at b.begin + y meet if x - y lies within
  // (distance - a.bytes, distance + b.bytes). Counting b's steps from its end turns the difference
  // into a sum, and moves the range by the length of all of b's steps.
  Step steps[8];
  int count = 0;
  std::int64_t all = 0;
  for (const Runs* runs : {&a, &b}) {
    for (int n = 0; n < runs->num_steps; ++n) {
      const Step& step = runs->steps[n];
      Step* const end = steps + count;
      Step* const same =
          std::find_if(steps, end, [&](const Step& other) { return other.bytes == step.bytes; });
      if (same == end) steps[count++] = {step.bytes, 0};
      same->times += step.times;
      all += step.bytes * step.times;
    }
  }
  sort_largest_first(steps, count);
  const std::int64_t moved = distance + b.span - b.bytes;
  int effort = 4096;
  return reaches(steps, count, all, moved - a.bytes + 1, moved + b.bytes - 1, &effort);
}

}  // namespace

bool share_memory(const Memory& a, const Memory& b) { return meet(runs_of(a), runs_of(b)); }

std::string shape_text(const std::int64_t* shape, int rank) {
  std::string result;
  for (int axis = 0; axis < rank; ++axis) {
    result += axis > 0 ? ", " : "[";
    result += std::to_string(shape[axis]);
  }
  result += "]";
  return result;
}

Status check_alignment(const Memory& view) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  const auto low_bits = static_cast<std::uintptr_t>(view.element_bytes - 1);  // a power of two
  if ((address & low_bits) == 0) return {};
  return invalid_argument(view.name, " is not aligned to its element size (", view.element_bytes,
                          " bytes)");
}

Status check_view(const Memory& view) {
  std::int64_t elements = 1;
  std::int64_t span = view.element_bytes;
  for (int axis = 0; axis < view.rank; ++axis) {
    const std::int64_t extent = view.shape[axis];
    if (extent < 0) {
      return invalid_argument(view.name, " has shape ", shape_text(view.shape, view.rank),
                              "; no axis may be negative");
    }
    if (view.stride[axis] < 0) {
      return invalid_argument(view.name, " has strides ", shape_text(view.stride, view.rank),
                              "; negative strides are not accepted");
    }
    if (__builtin_mul_overflow(elements, std::max<std::int64_t>(extent, 1), &elements) ||
        elements > kMaxElements) {
      return invalid_argument(view.name, " has shape ", shape_text(view.shape, view.rank),
                              "; accepted: up to ", kMaxElements, " elements");
    }
    // An axis of one entry is never stepped along, but its stride is multiplied by 0 and 1.
    std::int64_t step = 0;
    if (__builtin_mul_overflow(view.stride[axis], view.element_bytes, &step) ||
        __builtin_mul_overflow(step, std::max<std::int64_t>(extent - 1, 1), &step) ||
        step > kMaxSpanBytes || (extent > 1 && (span += step) > kMaxSpanBytes)) {
      return invalid_argument(view.name, " has shape ", shape_text(view.shape, view.rank),
                              " and strides ", shape_text(view.stride, view.rank),
                              "; accepted: views that reach over up to ", kMaxSpanBytes, " bytes");
    }
  }
  return check_alignment(view);
}

Status check_no_self_overlap(const Memory& view) {
  if (view.data == nullptr) return {};
  // From the smallest stride to the largest, each has to step over what the smaller ones take.
  std::int64_t taken = 1;  // elements
  bool done[4] = {};
  for (int n = 0; n < view.rank; ++n) {
    int axis = -1;
    for (int a = 0; a < view.rank; ++a) {
      if (!done[a] && (axis < 0 || view.stride[a] < view.stride[axis])) axis = a;
    }
    done[axis] = true;
    if (view.shape[axis] <= 1) continue;
    if (view.stride[axis] < taken) {
      return invalid_argument(view.name, " has shape ", shape_text(view.shape, view.rank),
                              " and strides ", shape_text(view.stride, view.rank),
                              ": its elements overlap on axis ", axis,
                              "; expected a stride there of at least ", taken);
    }
    taken += (view.shape[axis] - 1) * view.stride[axis];
  }
  return {};
}

Status check_no_overlap(std::span<const Memory> outputs, std::span<const Memory> inputs) {
  constexpr std::size_t kMost = 8;  // outputs
  assert(outputs.size() <= kMost);
  // Nearly always the spans lie apart, and nothing more has to be known.
  Span written[kMost];
  const auto refuse = [](const Memory& output, const Memory& other) {
    return invalid_argument(output.name, " shares memory with ", other.name,
                            "; an output needs memory of its own");
  };
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    written[n] = span_of(outputs[n]);
    for (std::size_t m = 0; m < n; ++m) {
      if (!intersect(written[n], written[m])) continue;
      if (share_memory(outputs[n], outputs[m])) return refuse(outputs[n], outputs[m]);
    }
  }
  for (const Memory& input : inputs) {
    const Span read = span_of(input);
    for (std::size_t n = 0; n < outputs.size(); ++n) {
      if (!intersect(written[n], read)) continue;
      if (share_memory(outputs[n], input)) return refuse(outputs[n], input);
    }
  }
  return {};
}

}  // namespace bsfa
