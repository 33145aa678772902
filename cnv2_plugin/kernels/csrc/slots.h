#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "failure.h"
#include "program.h"

namespace cnv2 {

// Channels that instructions may go over without naming each, for every word of a program and every plane of an image.
// Networks of this package need less than 1. It bounds memory and time by the length of a program.
constexpr int64_t kChannelsPerWord = 4;

// The map that each slot of memory holds, and which of its channels something was written to. What the memory of a channel
// held before is somebody else's, so nothing may read a channel that was not written.
class Slots {
  public:
    Slots(const std::vector<Map>& maps, int64_t words) : maps_(maps), left_(kChannelsPerWord * words) {}

    void resize(int64_t count) { slots_.resize(count); }
    bool holds(int32_t map) const { return slots_[maps_[map].slot].map == map; }

    void take(int32_t map) {
        slots_[maps_[map].slot].map = map;
        filled(map).assign(spend(maps_[map].channels), false);
    }

    void check_range(int32_t map, int64_t first, int64_t count) {
        auto begin = filled(map).begin() + first;
        if (std::find(begin, begin + spend(count), false) != begin + count) refuse_unwritten();
    }

    // Channels of `planes` planes each.
    void check(int32_t map, const int32_t* channels, int64_t count, int planes = 1) {
        const auto& there = filled(map);
        for (int64_t i = 0; i < count; ++i)
            for (int plane = 0; plane < planes; ++plane)
                if (!there[int64_t(channels[i]) * planes + plane]) refuse_unwritten();
    }

    void fill_range(int32_t map, int64_t count) { std::fill_n(filled(map).begin(), spend(count), true); }
    void fill(int32_t map, const int32_t* channels, int64_t count) {
        for (int64_t i = 0; i < count; ++i) filled(map)[channels[i]] = true;
    }

    // Channels that are each made from the same one, from one of four planes, or from four planes of another map.
    void pass(int32_t src, int32_t dst, int64_t count) {
        std::copy_n(filled(src).begin(), spend(count), filled(dst).begin());
    }
    void split(int32_t src, int32_t dst) {
        for (int64_t c = spend(maps_[src].channels) - 1; c >= 0; --c)
            std::fill_n(filled(dst).begin() + 4 * c, 4, filled(src)[c]);
    }
    void join(int32_t src, int32_t dst) {
        for (int64_t c = spend(maps_[dst].channels) - 1; c >= 0; --c) {
            auto planes = filled(src).begin() + 4 * c;
            filled(dst)[c] = std::find(planes, planes + 4, false) == planes + 4;
        }
    }

    // Channels that are gone over without a word for each.
    int64_t spend(int64_t channels) {
        left_ -= channels;
        if (left_ < 0) refuse("the program goes over more channels than so few words have use for");
        return channels;
    }

  private:
    struct Slot {
        int32_t map = -1;
        std::vector<bool> filled;
    };

    std::vector<bool>& filled(int32_t map) { return slots_[maps_[map].slot].filled; }
    [[noreturn]] static void refuse_unwritten() {
        refuse("an instruction reads channels of a map that nothing was written to");
    }

    const std::vector<Map>& maps_;
    std::vector<Slot> slots_;
    int64_t left_;
};

}  // namespace cnv2
