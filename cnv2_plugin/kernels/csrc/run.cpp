// Runs a program: one image on each thread, or one image on all of them.
#include "run.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "memory.h"
#include "program.h"
#include "stopwatch.h"

namespace cnv2 {
namespace {

constexpr int64_t kBandFloats = 48000;
constexpr int64_t kByteBandFloats = 192000;  // each band of bytes packs two rows more than it convolves
constexpr int64_t kWorthwhile = 1 << 14;  // multiply-adds or copies that are worth another thread
constexpr int kSpins = 2000;              // looks at what others do before the processor is offered to them

// What all threads do before any of them goes on: an instruction, or what has to precede it.
struct Step {
    const Instruction* it;
    bool prepares;
    int64_t count, size, parts;  // parts of so much each
    int64_t first;               // parts of all steps before
};

// How much an instruction goes over, at multiples of what it can be split, and its multiply-adds or copies.
struct Extent {
    int64_t count, step, work;
};

// One image at a time through all instructions.
class Runner {
  public:
    // Sums of nanoseconds, one for each instruction, are for one thread only.
    Runner(const Program& program, const int32_t* words, int32_t channels, Geometry size, int64_t threads,
           int64_t* nanoseconds = nullptr)
        : kernels_(kernels()), program_(program), words_(words), channels_(channels), size_(size), threads_(threads),
          nanoseconds_(nanoseconds) {
        int64_t total = 0;
        for (int64_t floats : program.slots) {
            starts_.push_back(total);
            total += round_up(floats);
        }
        scratch_ = total;
        total += threads * round_up(program.scratch);
        vector_ = total;
        total += round_up(program.vector_scratch);
        memory_ = take_workspace(std::max<int64_t>(total, 1));
        if (threads > 1) list_steps();
    }
    ~Runner() { give_back(std::move(memory_)); }
    Runner(const Runner&) = delete;
    Runner& operator=(const Runner&) = delete;

    void run(const float* image, float* output, const Executor& executor) {
        image_ = image;
        output_ = output;
        if (threads_ > 1) return run_steps(executor);
        for (size_t i = 0; i < program_.instructions.size(); ++i) {
            const Instruction& it = program_.instructions[i];
            if (it.followers) {
                prepare(it);
                band(&it);
                i += it.followers;
            } else {
                Stopwatch watch(sum(it));
                prepare(it);
                work(it, 0, extent(it).count, 0);
            }
        }
    }

  private:
    int64_t* sum(const Instruction& it) const {
        return nanoseconds_ ? nanoseconds_ + (&it - program_.instructions.data()) : nullptr;
    }
    float* data() const { return memory_.data.get(); }
    float* scratch(int64_t part) const { return data() + scratch_ + part * round_up(program_.scratch); }
    const int8_t* bytes(int64_t begin) const {
        return begin < 0 ? nullptr : reinterpret_cast<const int8_t*>(words_ + begin);
    }
    Planes planes(int32_t index) const {
        const Map& map = program_.maps[index];
        return {data() + starts_[map.slot] + map.front, map.stride};
    }

    void list_steps() {
        int64_t first = 0;
        auto add = [&](const Instruction& it, bool prepares, int64_t count, int64_t size) {
            int64_t parts = (count + size - 1) / size;
            steps_.push_back({&it, prepares, count, size, parts, first});
            first += parts;
        };
        for (const Instruction& it : program_.instructions) {
            if (needs_preparation(it)) add(it, true, 1, 1);
            Extent all = extent(it);
            int64_t parts = std::min({threads_, all.count / all.step, all.work / kWorthwhile});
            int64_t size = all.count;
            if (parts > 1) size = ((all.count + parts - 1) / parts + all.step - 1) / all.step * all.step;
            add(it, false, all.count, size);
        }
    }

    // Steps are taken in order, so a thread that waits for earlier ones waits for threads that are at work on them,
    // however many of the threads that were asked for take part. A part that fails is never done, so nobody waits then.
    // Of a step every thread takes the part whose place in the maps it had before, where that is left: it is in its cache.
    void run_steps(const Executor& executor) {
        alignas(64) std::atomic<int64_t> next{0};
        alignas(64) std::atomic<int64_t> done{0};
        std::atomic<bool> failed{false};
        std::vector<std::atomic<uint64_t>> taken(steps_.size());
        int64_t total = steps_.back().first + steps_.back().parts;
        parallel_for(executor, threads_, [&](int64_t thread) {
            const Step* step = steps_.data();
            for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < total;) {
                while (part >= step->first + step->parts) ++step;
                for (int spins = 0; done.load(std::memory_order_acquire) < step->first; ++spins) {
                    if (failed.load(std::memory_order_relaxed)) return;
                    if (spins > kSpins) std::this_thread::yield();
                }
                try {
                    run_part(*step, take(*step, taken[step - steps_.data()], thread * step->parts / threads_, part - step->first));
                } catch (...) {
                    failed = true;
                    throw;
                }
                done.fetch_add(1, std::memory_order_acq_rel);
            }
        });
    }

    // One of a step's parts that nobody took: the wanted one or the first. So many parts as have a bit each; else by turns.
    static int64_t take(const Step& step, std::atomic<uint64_t>& taken, int64_t wanted, int64_t turn) {
        if (step.parts > 64) return turn;
        uint64_t before = taken.load(std::memory_order_relaxed);
        for (;;) {
            int64_t chosen = wanted;
            if (before >> wanted & 1)
                for (chosen = 0; before >> chosen & 1;) ++chosen;
            if (taken.compare_exchange_weak(before, before | uint64_t(1) << chosen, std::memory_order_relaxed)) return chosen;
        }
    }

    void run_part(const Step& step, int64_t index) const {
        int64_t begin = index * step.size;
        if (step.prepares)
            prepare(*step.it);
        else
            work(*step.it, begin, std::min(step.count, begin + step.size), index);
    }

    bool needs_preparation(const Instruction& it) const {
        return (it.first && program_.maps[it.dst].padded) || it.operation == kLinear;
    }

    // What surrounds every plane of a padded map is zeroed before the map is written for the first time; what a linear
    // layer reads is gathered.
    void prepare(const Instruction& it) const {
        fault_point();
        if (it.operation == kLinear) {
            Planes from = planes(it.src);
            for (int32_t c = 0; c < it.linear.inputs; ++c) data()[vector_ + c] = *from.at(c);
        }
        if (!it.first || !program_.maps[it.dst].padded) return;
        const Map& map = program_.maps[it.dst];
        Planes at = planes(it.dst);
        for (int32_t c = 0; c < map.channels; ++c) {
            std::fill(at.at(c) - map.front, at.at(c), 0.0f);
            std::fill(at.at(c) + map.size.positions(), at.at(c) + map.stride - map.front, 0.0f);
        }
    }

    Extent extent(const Instruction& it) const {
        auto channels = [&](int64_t count, const Geometry& size) { return Extent{count, 1, count * size.positions()}; };
        auto positions = [&](const auto& s, int64_t taps) {
            int64_t count = s.size.positions();
            return Extent{count, kStep, count * s.groups * s.rows * s.inputs * taps};
        };
        switch (it.operation) {
            case kLoad: return channels(channels_, size_);
            case kPool:
            case kSplit: return channels(program_.maps[it.src].channels, program_.maps[it.src].size);
            case kMaximum: return channels(program_.maps[it.dst].channels, program_.maps[it.src].size);
            case kSelect: return positions(it.select, 1);
            case kSpatial: return positions(it.spatial, 9);
            case kNormalise: return channels(program_.maps[it.src].channels, it.normalise.size);
            case kAverage: return {program_.maps[it.dst].channels, 8, program_.maps[it.dst].channels * it.average.size.positions()};
            case kLinear: return {it.rows, 8, int64_t(it.rows) * it.linear.inputs};
            case kStore: return channels(program_.output.channels, it.store.size);
            default: return {1, 1, 0};
        }
    }

    // An instruction on a part of its positions, channels or rows.
    void work(const Instruction& it, int64_t begin, int64_t end, int64_t part) const {
        fault_point();
        switch (it.operation) {
            case kLoad: load(it, begin, end); break;
            case kPool: {
                const Map& from = program_.maps[it.src];
                kernels_.pool({planes(it.src).base, from.stride, from.size.row(), planes(it.dst), program_.maps[it.dst].size},
                               begin, end);
                break;
            }
            case kSplit: {
                const Map& from = program_.maps[it.src];
                kernels_.split({planes(it.src).base, from.stride, from.size.row(), from.size.height, from.size.width,
                                 planes(it.dst), program_.maps[it.dst].size},
                                begin, end);
                break;
            }
            case kMaximum: {
                const Map& to = program_.maps[it.dst];
                kernels_.maximum({planes(it.src), planes(it.dst), to.size, to.padded}, begin, end);
                break;
            }
            case kZero: {
                const Map& map = program_.maps[it.dst];
                for (int32_t c = 0; c < map.channels; ++c)
                    std::fill_n(planes(it.dst).at(c), round_up(map.size.positions()), 0.0f);
                break;
            }
            case kSelect: select(it, begin, end, part); break;
            case kSpatial: spatial(it, begin, end, part); break;
            case kExcite:
            case kExciteBytes: {
                Excite excite = it.excite;
                excite.squeeze_bytes = bytes(it.bytes[0]);
                excite.excite_bytes = bytes(it.bytes[1]);
                excite.map = planes(it.src);
                excite.scratch = data() + vector_;
                kernels_.excite(excite);
                break;
            }
            case kNormalise: {
                Normalise normalise = it.normalise;
                normalise.map = planes(it.src);
                kernels_.normalise(normalise, begin, end);
                break;
            }
            case kAverage: {
                Average average = it.average;
                average.src = planes(it.src);
                average.dst = planes(it.dst);
                kernels_.average(average, begin, end);
                break;
            }
            case kLinear: {
                Linear linear = it.linear;
                linear.x = data() + vector_;
                linear.bytes = bytes(it.bytes[0]);
                linear.dst = planes(it.dst);
                kernels_.linear(linear, begin, end);
                break;
            }
            default: {
                Store store = it.store;
                store.src = planes(it.src);
                store.dst = output_;
                kernels_.store(store, begin, end);
            }
        }
    }

    void load(const Instruction& it, int64_t begin, int64_t end) const {
        const Map& map = program_.maps[it.dst];
        Planes to = planes(it.dst);
        int64_t plane = size_.height * size_.width;
        if (it.loading == kPooled) return kernels_.pool({image_, plane, size_.width, to, map.size}, begin, end);
        if (it.loading == kSplitted)
            return kernels_.split({image_, plane, size_.width, size_.height, size_.width, to, map.size}, begin, end);
        for (int64_t c = begin; c < end; ++c) {
            float* row = to.at(c);
            for (int64_t y = 0; y < size_.height; ++y, row += size_.row()) {
                const float* in = image_ + c * plane + y * size_.width;
                std::copy(in, in + size_.width, row);
                row[size_.width] = 0;
            }
            std::fill(row, to.at(c) + round_up(size_.positions()), 0.0f);
        }
    }

    void select(const Instruction& it, int64_t begin, int64_t end, int64_t part) const {
        Select select = it.select;
        select.src = planes(it.src);
        select.dst = planes(it.dst);
        kernels_.select(select, begin, end, scratch(part));
    }

    void spatial(const Instruction& it, int64_t begin, int64_t end, int64_t part) const {
        Spatial spatial = it.spatial;
        spatial.src = planes(it.src);
        spatial.dst = planes(it.dst);
        kernels_.spatial(spatial, begin, end, scratch(part));
    }

    // A 1x1 convolution, the 3x3 convolution of its result and what follows, band by band, so that what one writes is
    // still in the cache when the next one reads it. The 3x3 convolution stays a row and a position behind.
    void band(const Instruction* it) const {
        fault_point();
        const Map& hidden = program_.maps[it->dst];
        int64_t all = hidden.size.positions();
        int64_t floats = it[1].spatial.bytes ? kByteBandFloats : kBandFloats;
        int64_t step = std::max<int64_t>(floats / (hidden.channels + it->select.groups * it->select.inputs),
                                         4 * hidden.size.row());
        step = round_up(step);
        int64_t done = 0, convolved = 0;
        while (convolved < all) {
            int64_t end = all - done > step + step / 2 ? done + step : all;
            if (done < end) {
                Stopwatch watch(sum(*it));
                select(*it, done, end, 0);
            }
            done = end;
            int64_t behind = done == all ? all : (done - hidden.size.row() - 1) / kStep * kStep;
            if (behind > convolved) {
                {
                    Stopwatch watch(sum(it[1]));
                    spatial(it[1], convolved, behind, 0);
                }
                if (it->followers == 2) {
                    Stopwatch watch(sum(it[2]));
                    select(it[2], convolved, behind, 0);
                }
                convolved = behind;
            }
        }
    }

    const Kernels& kernels_;
    const Program& program_;
    const int32_t* words_;
    int32_t channels_;
    Geometry size_;
    int64_t threads_, scratch_ = 0, vector_ = 0;
    int64_t* nanoseconds_;
    const float* image_ = nullptr;
    float* output_ = nullptr;
    std::vector<int64_t> starts_;
    std::vector<Step> steps_;
    Workspace memory_;
};

}  // namespace

void run(const Checked& checked, const int32_t* words, const Input& input, const std::function<float*(const OutputShape&)>& allocate,
         const Executor& executor) {
    const Program& program = checked.program;
    float* output = allocate(program.output);
    int64_t in = input.channels * input.height * input.width;
    int64_t out = program.output.channels * program.output.height * program.output.width;
    bool by_image = input.batch >= executor.threads || executor.threads < 2;
    auto images = [&](int64_t begin, int64_t end, int64_t threads) {
        Runner runner(program, words, int32_t(input.channels), checked.size, threads);
        for (int64_t i = begin; i < end; ++i) runner.run(input.data + i * in, output + i * out, executor);
    };
    if (!by_image) return images(0, input.batch, executor.threads);
    int64_t parts = std::min(executor.threads, input.batch);
    parallel_for(executor, parts, [&](int64_t i) {
        images(input.batch * i / parts, input.batch * (i + 1) / parts, 1);
    });
}

void measure(const Checked& checked, const int32_t* words, const Input& input,
             const std::function<int64_t*(const std::vector<int32_t>& operations)>& begin) {
    const Program& program = checked.program;
    std::vector<int32_t> operations;
    for (const Instruction& it : program.instructions) operations.push_back(it.operation);
    Runner runner(program, words, int32_t(input.channels), checked.size, 1, begin(operations));
    std::vector<float> output(size_t(program.output.channels * program.output.height * program.output.width));
    int64_t in = input.channels * input.height * input.width;
    for (int64_t i = 0; i < input.batch; ++i) runner.run(input.data + i * in, output.data(), Executor{});
}

}  // namespace cnv2
