// What of this machine's CPU matters to engines.
#pragma once

namespace segmenter_trt {

// Cores the system schedules this process on, at least 1.
int usable_cores();

// Whether products of uint8 with int8 are summed in pairs of 16 bits, which can overflow: x86 with AVX2 before VNNI.
bool int8_saturates();

}  // namespace segmenter_trt
