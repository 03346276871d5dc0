// What of this machine's CPU matters to engines.
#pragma once

#include <string>

namespace segmenter_trt {

// Cores the system schedules this process on, at least 1.
int scheduled_cores();

// As many of them as it is given time for, at least 1: containers are held to a part of all cores' time. Read once.
int usable_cores();

// Cores' worth of time, rounded up, that control groups hold a process to; very many where they do not. `groups`: what
// /proc/self/cgroup says; `mounted`: where they are mounted, of version 2 or 1.
int cores_of_quota(const std::string& groups, const std::string& mounted);

// Whether products of uint8 with int8 are summed in pairs of 16 bits, which can overflow: x86 with AVX2 before VNNI.
bool int8_saturates();

}  // namespace segmenter_trt
