// Words of a program:
//   kMagic, input channels, output channels, maps, slots, instructions; for each map: channels, padded, slot;
//   for each instruction: operation, words that follow, then
//   load        dst, how (0 as it is, 1 pooled, 2 split)
//   pool        src, dst
//   zero        dst
//   select      src, dst, groups, inputs, rows, act_in, act_out, flags, weight, bias, affine, followers,
//               index [groups][inputs], target [groups][rows]; of bytes then the byte of zero and the weights as words
//               (see kernels.h), and `weight` names the inverse of the step and a scale of every row
//   spatial     src, dst, groups, inputs, rows, stride, act_out, flags, weight, bias,
//               index [groups][inputs], target [groups][rows]; of bytes as select
//   excite      map, first, channels, hidden, squeeze, excite; of bytes (kExciteBytes) these are scales of the results, and
//               the weights follow as bytes, each of the two filled up to words
//   split       src, dst
//   maximum     src, dst
//   store       src, act, flags, affine, index [output channels]
//   average     src, dst
//   linear      src, dst, inputs, rows, act_out, flags, weight, bias; of bytes then the weights, filled up to words, and
//               `weight` names a scale of every row
//   normalise   map, act, flags, affine
// weight, bias, affine, squeeze and excite are offsets into the weights; affine is all scales, then all shifts.
#include "program.h"

#include <algorithm>

#include "reader.h"
#include "slots.h"

namespace cnv2 {
namespace {

constexpr int64_t kMostFloats = int64_t(1) << 33;

class Parser {
  public:
    Parser(Reader reader, int64_t words, int64_t channels, Geometry size)
        : read_(reader), channels_(channels), size_(size), slots_(program_.maps, words + 4 * channels) {}

    Program parse() {
        if (read_.next("the mark of a program", INT32_MIN, INT32_MAX) != kMagic) refuse("this is no program of these kernels");
        int32_t channels = read_.next("input channels", 1, 1 << 20);
        if (channels != channels_)
            refuse("the input has " + std::to_string(channels_) + " channels, but the program takes " +
                   std::to_string(channels));
        out_channels_ = read_.next("output channels", 1, 1 << 20);
        int32_t maps = read_.next("the number of maps", 1, 1 << 16);
        int32_t slots = read_.next("the number of slots", 1, 64);
        int32_t instructions = read_.next("the number of instructions", 1, 1 << 20);
        program_.slots.assign(slots, 0);
        slots_.resize(slots);
        for (int32_t i = 0; i < maps; ++i) {
            Map map;
            map.channels = read_.next("channels of a map", 1, 1 << 20);
            map.padded = read_.next("padding of a map", 0, 1);
            map.slot = read_.next("slot of a map", 0, slots - 1);
            program_.maps.push_back(map);
        }
        for (int32_t i = 0; i < instructions; ++i) program_.instructions.push_back(instruction());
        if (!read_.at_end()) refuse("the program has words behind its last instruction");
        if (program_.output.channels == 0) refuse("the program stores no result");
        check_followers();
        for (const Map& map : program_.maps) {
            int64_t& size = program_.slots[map.slot];
            size = std::max(size, map.channels * map.stride);
        }
        return std::move(program_);
    }

  private:
    Instruction instruction() {
        Instruction made;
        made.operation = read_.next("an operation", 0, kOperations - 1);
        int32_t words = read_.next("the length of an instruction", 0, INT32_MAX);
        const int32_t* start = read_.position();
        switch (made.operation) {
            case kLoad: load(made); break;
            case kPool: pool(made); break;
            case kZero: zero(made); break;
            case kSelect: select(made); break;
            case kSpatial: spatial(made); break;
            case kExcite:
            case kExciteBytes: excite(made); break;
            case kSplit: split(made); break;
            case kMaximum: maximum(made); break;
            case kAverage: average(made); break;
            case kLinear: linear(made); break;
            case kNormalise: normalise(made); break;
            default: store(made);
        }
        if (read_.position() - start != words) refuse("the length of an instruction is not that of its words");
        return made;
    }

    void load(Instruction& made) {
        made.dst = map_index();
        made.loading = read_.next("the way to load", 0, kSplitted);
        if (made.loading == kSplitted && !map(made.dst).padded) refuse("a split map has no padding");
        if (map(made.dst).channels < channels_ * (made.loading == kSplitted ? 4 : 1))
            refuse("the input does not fit the map that it is loaded into");
        Geometry size = made.loading == kPooled ? halved(size_) : made.loading == kSplitted ? split_size(size_) : size_;
        made.first = begin(made.dst, size);
        slots_.fill_range(made.dst, channels_ * (made.loading == kSplitted ? 4 : 1));
    }

    void split(Instruction& made) {
        made.src = source();
        made.dst = map_index();
        if (!map(made.dst).padded) refuse("a split map has no padding");
        if (made.src == made.dst || map(made.dst).channels < 4 * int64_t(map(made.src).channels))
            refuse("a split map does not fit its target");
        made.first = begin(made.dst, split_size(map(made.src).size));
        still_written(made.src);
        slots_.split(made.src, made.dst);
    }

    void maximum(Instruction& made) {
        made.src = source();
        made.dst = map_index();
        if (!map(made.src).padded || made.src == made.dst) refuse("a maximum reads a map that is not split");
        if (int64_t(map(made.dst).channels) > map(made.src).channels / 4) refuse("a maximum does not fit its target");
        made.first = begin(made.dst, map(made.src).size);
        still_written(made.src);
        slots_.join(made.src, made.dst);
    }

    void zero(Instruction& made) {
        made.dst = map_index();
        if (last_.height == 0) refuse("a map is zeroed before any other has a size");
        made.first = begin(made.dst, last_);
        slots_.fill_range(made.dst, map(made.dst).channels);
    }

    void pool(Instruction& made) {
        made.src = source();
        made.dst = map_index();
        if (map(made.dst).channels < map(made.src).channels) refuse("a pooled map does not fit its target");
        if (made.src == made.dst) refuse("a map is pooled into itself");
        made.first = begin(made.dst, halved(map(made.src).size));
        still_written(made.src);
        slots_.pass(made.src, made.dst, map(made.src).channels);
    }

    void select(Instruction& made) {
        Select& s = made.select;
        made.src = source();
        made.dst = map_index();
        s.groups = read_.next("groups", 1, 1 << 20);
        s.inputs = read_.next("inputs of a group", 1, 1 << 20);
        s.rows = read_.next("rows of a group", 1, 1 << 20);
        s.act_in = read_.next("an activation", 0, kActivations - 1);
        s.act_out = read_.next("an activation", 0, kActivations - 1);
        int32_t flags = read_.next("flags", 0, kFlags | kBytes);
        int64_t columns = int64_t(s.groups) * s.inputs, rows = int64_t(s.groups) * s.rows;
        if (flags & kBytes) {
            if (s.inputs > kMostByteInputs) refuse("a group of a 1x1 convolution of bytes has too many inputs");
            s.row_scale = read_.floats("scales of a 1x1 convolution of bytes", 1 + rows);
        } else {
            s.weight = read_.floats("weights of a 1x1 convolution", columns * s.rows);
        }
        s.bias = optional(flags & kBias, "biases", rows);
        s.scale = optional(flags & kAffine, "scales and shifts", 2 * columns);
        s.shift = s.scale ? s.scale + columns : nullptr;
        made.followers = read_.next("instructions that follow in bands", 0, 2);
        s.index = read_.list("the inputs", columns, map(made.src).channels);
        s.target = read_.list("the results", rows, map(made.dst).channels);
        if (flags & kBytes) {
            s.zero = read_.next("the byte of zero", 0, 255);
            s.bytes = read_.bytes("weights of a 1x1 convolution", rows * ((s.inputs + 3) / 4), kMostWeight);
        }
        s.accumulate = flags & kAccumulate;
        made.first = begin(made.dst, map(made.src).size);
        still_written(made.src);
        slots_.check(made.src, s.index, columns);
        if (s.accumulate)
            slots_.check(made.dst, s.target, rows);
        else
            slots_.fill(made.dst, s.target, rows);
        s.size = map(made.src).size;
        s.zero_pads = map(made.dst).padded;
        take_scratch(select_scratch(s.inputs));
    }

    void spatial(Instruction& made) {
        Spatial& s = made.spatial;
        made.src = source();
        made.dst = map_index();
        s.groups = read_.next("groups", 1, 1 << 20);
        s.inputs = read_.next("inputs of a group", 1, kMostSpatialInputs);
        s.rows = read_.next("rows of a group", 1, 1 << 20);
        s.stride = read_.next("stride", 1, 2);
        s.act_out = read_.next("an activation", 0, kActivations - 1);
        int32_t flags = read_.next("flags", 0, kFlags | kBytes);
        int64_t columns = int64_t(s.groups) * s.inputs, rows = int64_t(s.groups) * s.rows;
        if (flags & kBytes)
            s.row_scale = read_.floats("scales of a 3x3 convolution of bytes", 1 + rows);
        else
            s.weight = read_.floats("weights of a 3x3 convolution", columns * s.rows * 9);
        s.bias = optional(flags & kBias, "biases", rows);
        s.index = read_.list("the inputs", columns, map(made.src).channels / s.planes());
        s.target = read_.list("the results", rows, map(made.dst).channels);
        if (flags & kBytes) {
            s.zero = read_.next("the byte of zero", 0, 255);
            s.bytes = read_.bytes("weights of a 3x3 convolution", rows * ((s.inputs + 3) / 4) * 9, kMostWeight);
        }
        if (!map(made.src).padded) refuse("a 3x3 convolution reads a map without padding");
        if (made.src == made.dst) refuse("a 3x3 convolution writes into the map that it reads");
        s.size = map(made.src).size;
        s.zero_pads = map(made.dst).padded;
        made.first = begin(made.dst, s.size);
        still_written(made.src);
        slots_.check(made.src, s.index, columns, int(s.planes()));
        slots_.fill(made.dst, s.target, rows);
        if (s.bytes) take_scratch(spatial_scratch(s));
    }

    void excite(Instruction& made) {
        Excite& s = made.excite;
        made.src = made.dst = source();
        s.first = read_.next("the first excited channel", 0, map(made.src).channels - 1);
        s.channels = read_.next("excited channels", 1, map(made.src).channels - s.first);
        slots_.check_range(made.src, s.first, s.channels);
        s.hidden = read_.next("the hidden width of an excitation", 1, 1 << 20);
        int64_t weights = int64_t(s.channels) * s.hidden;
        bool bytes = made.operation == kExciteBytes;
        s.squeeze = read_.floats("weights of a squeeze", bytes ? s.hidden : weights);
        s.excite = read_.floats("weights of an excitation", bytes ? s.channels : weights);
        for (int i = 0; bytes && i < 2; ++i) made.bytes[i] = any_bytes("weights of an excitation", weights);
        s.size = map(made.src).size;
        program_.vector_scratch = std::max<int64_t>(program_.vector_scratch, s.channels + s.hidden);
    }

    void normalise(Instruction& made) {
        Normalise& s = made.normalise;
        made.src = made.dst = source();
        const Map& changed = map(made.src);
        s.act = read_.next("an activation", 0, kActivations - 1);
        int32_t flags = read_.next("flags", 0, kFlags);
        s.scale = optional(flags & kAffine, "scales and shifts", 2 * int64_t(changed.channels));
        s.shift = s.scale ? s.scale + changed.channels : nullptr;
        slots_.spend(changed.channels);
        s.size = changed.size;
        s.zero_pads = changed.padded;
    }

    void average(Instruction& made) {
        Average& s = made.average;
        made.src = source();
        made.dst = map_index();
        if (made.src == made.dst || map(made.dst).channels > map(made.src).channels)
            refuse("a mean does not fit its target");
        s.size = map(made.src).size;
        made.first = begin(made.dst, {1, 1});
        still_written(made.src);
        slots_.pass(made.src, made.dst, map(made.dst).channels);
    }

    void linear(Instruction& made) {
        Linear& s = made.linear;
        made.src = source();
        made.dst = map_index();
        s.inputs = read_.next("inputs of a linear layer", 1, map(made.src).channels);
        made.rows = read_.next("rows of a linear layer", 1, map(made.dst).channels);
        s.act_out = read_.next("an activation", 0, kActivations - 1);
        int32_t flags = read_.next("flags", 0, kFlags | kBytes);
        int64_t weights = int64_t(s.inputs) * made.rows;
        s.weight = read_.floats("weights of a linear layer", flags & kBytes ? made.rows : weights);
        s.bias = optional(flags & kBias, "biases", made.rows);
        if (flags & kBytes) made.bytes[0] = any_bytes("weights of a linear layer", weights);
        if (made.src == made.dst || map(made.src).size.positions() != Geometry{1, 1}.positions())
            refuse("a linear layer reads a map of one pixel and writes another");
        made.first = begin(made.dst, {1, 1});
        still_written(made.src);
        slots_.check_range(made.src, 0, s.inputs);
        slots_.fill_range(made.dst, made.rows);
        program_.vector_scratch = std::max<int64_t>(program_.vector_scratch, s.inputs);
    }

    void store(Instruction& made) {
        Store& s = made.store;
        if (program_.output.channels) refuse("the program stores two results");
        made.src = source();
        s.act = read_.next("an activation", 0, kActivations - 1);
        int32_t flags = read_.next("flags", 0, kFlags);
        s.scale = optional(flags & kAffine, "scales and shifts", 2 * int64_t(out_channels_));
        s.shift = s.scale ? s.scale + out_channels_ : nullptr;
        s.index = read_.list("the result", out_channels_, map(made.src).channels);
        slots_.check(made.src, s.index, out_channels_);
        s.size = map(made.src).size;
        program_.output = {out_channels_, s.size.height, s.size.width};
    }

    // Instructions that run in bands read what the first one wrote, at one size.
    void check_followers() {
        auto& all = program_.instructions;
        for (size_t i = 0; i < all.size(); ++i) {
            int32_t followers = all[i].followers;
            if (!followers) continue;
            if (i + followers >= all.size()) refuse("a band has fewer instructions than it says");
            const Instruction &conv = all[i + 1];
            bool fits = conv.operation == kSpatial && conv.spatial.stride == 1 && conv.src == all[i].dst &&
                        conv.dst == all[i].src;
            if (followers == 2) {
                const Instruction& last = all[i + 2];
                fits = fits && last.operation == kSelect && !last.followers && last.src == conv.dst && last.dst == conv.dst;
            }
            if (!fits) refuse("the instructions of a band do not follow each other");
        }
    }

    const float* optional(bool there, const char* what, int64_t count) {
        if (there) return read_.floats(what, count);
        read_.skip();
        return nullptr;
    }

    int64_t any_bytes(const char* what, int64_t count) {
        int64_t begin = read_.any_bytes(what, count);
        program_.bytes.push_back({begin, begin + (count + 3) / 4});
        return begin;
    }

    void take_scratch(int64_t floats) {
        if (floats > kMostFloats) refuse("the maps are too large for these kernels");
        program_.scratch = std::max(program_.scratch, floats);
    }

    Map& map(int32_t index) { return program_.maps[index]; }
    int32_t map_index() { return read_.next("a map", 0, int64_t(program_.maps.size()) - 1); }

    int32_t source() {
        int32_t index = map_index();
        if (!slots_.holds(index)) refuse("an instruction reads a map that nothing was written to");
        return index;
    }

    void still_written(int32_t index) {
        if (!slots_.holds(index)) refuse("an instruction writes into the memory that it reads");
    }

    Geometry split_size(Geometry size) { return {(size.height + 1) / 2, (size.width + 1) / 2}; }

    Geometry halved(Geometry size) {
        Geometry half{size.height / 2, size.width / 2};
        if (half.height < 1 || half.width < 1)
            refuse("a map of " + std::to_string(size.height) + " x " + std::to_string(size.width) +
                   " pixels is too small to be halved; give larger images");
        return half;
    }

    // Lets a map be written; true if its slot held another one, so that nothing of it is written yet.
    bool begin(int32_t index, Geometry size) {
        Map& target = map(index);
        last_ = size;
        bool has_size = target.size.height != 0;
        if (has_size && (target.size.height != size.height || target.size.width != size.width))
            refuse("two instructions write one map at two sizes");
        if (slots_.holds(index)) return false;
        target.size = size;
        int64_t pad = target.padded ? round_up(size.row() + 1) : 0;
        target.front = pad;
        target.stride = pad + round_up(size.positions()) + (target.padded ? pad + kMaxLanes * kMaxTile : 0);
        if (target.stride > kMostFloats / target.channels) refuse("the maps are too large for these kernels");
        slots_.take(index);
        return true;
    }

    Reader read_;
    int64_t channels_;
    Geometry size_, last_{0, 0};
    int32_t out_channels_ = 0;
    Program program_;
    Slots slots_;
};

}  // namespace

Program parse(const int32_t* program, int64_t words, const float* weights, int64_t weight_count, int64_t channels,
              Geometry size) {
    const int64_t &height = size.height, &width = size.width;
    if (height < 1 || width < 1 || height > (1 << 24) || width > (1 << 24))
        refuse("the images have " + std::to_string(height) + " x " + std::to_string(width) +
               " pixels; at least 1 x 1 are needed");
    return Parser(Reader(program, words, weights, weight_count), words, channels, size).parse();
}

}  // namespace cnv2
