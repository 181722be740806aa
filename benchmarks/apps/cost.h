// What every program of apps_cost.py prints: the moment of its first answer, the median of its calls, its peak memory.
#ifndef COST_H
#define COST_H

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

inline long long now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

template <typename Call>
void measure(int calls, const Call &call) {
    volatile float kept = call();
    const long long first = now_ns();
    std::vector<long long> times;
    for (int i = 0; i < calls; i++) {
        const long long start = now_ns();
        kept = call();
        times.push_back(now_ns() - start);
    }
    (void)kept;
    std::sort(times.begin(), times.end());
    long peak_kb = 0;
    char line[256];
    std::FILE *status = std::fopen("/proc/self/status", "r");
    while (status != nullptr && std::fgets(line, sizeof line, status) != nullptr) {
        if (std::strncmp(line, "VmHWM:", 6) == 0) {
            std::sscanf(line + 6, "%ld", &peak_kb);
        }
    }
    std::printf("%lld %lld %ld\n", first, times[times.size() / 2], peak_kb);
}

#endif
