// How far apart two cores are. Cores that share no cache pass data on several times more slowly, and the host of a
// virtual machine moves its cores while it runs, so timings of code that hands over often come in two sizes.
#pragma once

namespace segmenter_trt {

// Nanoseconds a cache line takes from core `first` to core `second`: half of a round trip, the mean of many, the least
// of a few tries, which take some milliseconds in all. Threads that are busy on either core make it longer.
// Throws std::invalid_argument for one and the same core, and for one this process may not run on; Unavailable where
// the system has no thread to give, or does not let it choose its core.
double core_to_core_ns(int first, int second);

}  // namespace segmenter_trt
