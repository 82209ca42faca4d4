// Convolutions of many tasks, each with weights of its own, and both their gradients.
//
// In memory a place's channels lie together. A convolution is then a product of matrices for each tap of the kernel,
// whose rows are the places that the tap joins, looked up where they are: nothing is copied, and what a tap would find
// beyond the edge costs nothing.
#include "lanes.hpp"

namespace {

inline Index ceil(Index a, Index b) { return (a + b - 1) / b; }

struct Range {
    Index first, last;  // the last is not in it
    Index count() const { return last - first; }
};

struct Sizes {
    Index tasks, n, c, h, w, o, k, stride;  // images (tasks, n, h, w, c), weights (tasks, o, c, k, k), k odd

    Index high() const { return (h - 1) / stride + 1; }  // maps (tasks, n, high, across, o)
    Index across() const { return (w - 1) / stride + 1; }
    Index taps() const { return k * k; }
    Index inputs() const { return c * taps(); }
    Index image() const { return h * w * c; }
    Index map() const { return high() * across() * o; }

    // A tap joins a map's place, along an axis, with the image's place `stride * place + shift`.
    Index shift(Index tap) const { return tap - k / 2; }
    // A map's places, out of `all`, that it joins with the image's places in `image`.
    Range joined(Index tap, Range all, Range image) const {
        return {std::max(all.first, ceil(image.first - shift(tap), stride)),
                std::min(all.last, ceil(std::max(Index(0), image.last - shift(tap)), stride))};
    }
    // The same convolution of images each of whose places has all inputs of a map's place, tap after tap.
    Sizes of_patches() const { return {tasks, n, inputs(), high(), across(), o, 1, 1}; }
};

// out[r] = sum of a[r][j] b[j] over j, for ROWS rows and VECTORS of columns. All of it stays in registers.
template <class T>
struct Product {
    const T* const* a;
    Index from;  // the first j of all rows of a
    const T* b;
    T* const* out;
    Index length, columns;  // of b; the columns are whole vectors
    bool add;               // to what there is
};

template <class T, Index ROWS, Index VECTORS>
__attribute__((noinline)) void tile(const Product<T>& p, Index row, Index at) {
    Vector<T> sums[ROWS][VECTORS] = {};
    const T* a[ROWS];
    for (Index r = 0; r < ROWS; r++) a[r] = p.a[row + r] + p.from;
    const T* b = p.b + at;
    for (Index j = 0; j < p.length; j++, b += p.columns) {
        Vector<T> factors[VECTORS];
        for (Index v = 0; v < VECTORS; v++) factors[v] = load(b + v * WIDE<T>);
        for (Index r = 0; r < ROWS; r++) {
            Vector<T> one = a[r][j] - Vector<T>{};
            for (Index v = 0; v < VECTORS; v++) sums[r][v] += one * factors[v];
        }
    }
    // Only now: short sums that are added up are nearer to the truth than a long one.
    for (Index r = 0; r < ROWS; r++)
        for (Index v = 0; v < VECTORS; v++) {
            T* out = p.out[row + r] + at + v * WIDE<T>;
            store(out, p.add ? load(out) + sums[r][v] : sums[r][v]);
        }
}

// out[r] += sum of a[j][r] b[j] over j, likewise.
template <class T>
struct Outer {
    const T* const* a;
    const T* const* b;
    T* out;
    Index length, columns;
};

template <class T, Index ROWS, Index VECTORS>
__attribute__((noinline)) void tile(const Outer<T>& p, Index row, Index at) {
    Vector<T> sums[ROWS][VECTORS] = {};
    for (Index j = 0; j < p.length; j++) {
        const T *a = p.a[j] + row, *b = p.b[j] + at;
        Vector<T> factors[VECTORS];
        for (Index v = 0; v < VECTORS; v++) factors[v] = load(b + v * WIDE<T>);
        for (Index r = 0; r < ROWS; r++) {
            Vector<T> one = a[r] - Vector<T>{};
            for (Index v = 0; v < VECTORS; v++) sums[r][v] += one * factors[v];
        }
    }
    for (Index r = 0; r < ROWS; r++)
        for (Index v = 0; v < VECTORS; v++) {
            T* out = p.out + (row + r) * p.columns + at + v * WIDE<T>;
            store(out, load(out) + sums[r][v]);
        }
}

template <class T, Index ROWS, Index VECTORS, class P>
void rows_from(const P& p, Index row, Index rows, Index at) {
    for (; row + ROWS <= rows; row += ROWS) tile<T, ROWS, VECTORS>(p, row, at);
    if constexpr (ROWS > 1)
        if (row < rows) rows_from<T, (ROWS > 6 ? 6 : ROWS - 1), VECTORS>(p, row, rows, at);
}

template <class T, Index VECTORS, class P>
void columns_from(const P& p, Index rows, Index at) {
    constexpr Index MOST = VECTORS == 1 ? REGISTERS / 3 : 6;
    for (; at + VECTORS * WIDE<T> <= p.columns; at += VECTORS * WIDE<T>) rows_from<T, MOST, VECTORS>(p, 0, rows, at);
    if constexpr (VECTORS > 1) columns_from<T, VECTORS / 2>(p, rows, at);
}

template <class T, class P>
void multiply(const P& p, Index rows) {
    columns_from<T, (REGISTERS > 16 ? 4 : 2)>(p, rows, 0);
}

constexpr Index DEEP = 256;  // products are summed up at a time: so many rows of b stay near

// Numbers that are worked on at once, of a megabyte.
template <class T>
constexpr Index CACHE = 1024 * 1024 / sizeof(T);

template <class T>
struct Rooms {
    Room<T> weights, patches, line, maps;
    Room<const T*> a, b;
    Room<T*> out;
};

template <class T>
Rooms<T>& rooms() {
    static thread_local Rooms<T> own;
    return own;
}

// Rows of the weights are here all channels of a tap and then the next tap's. `input` is in torch's order.
inline Index row_of(const Sizes& s, Index input) { return input % s.taps() * s.c + input / s.taps(); }

// With a few channels patches are copied after all: a product of so few numbers is not worth its beginning.
inline bool in_patches(const Sizes& s) { return s.c < 16 && s.k > 1; }

// For some lines of a map, the inputs of each of its places.
template <class T>
void lay_out(const Sizes& s, const T* image, T* patches, Range lines) {
    const Index across = s.across(), middle = s.k / 2, run = s.k * s.c;
    T* line = rooms<T>().line.of((s.w + s.k - 1) * s.c);
    std::memset(line, 0, (s.w + s.k - 1) * s.c * sizeof(T));
    for (Index y = lines.first; y < lines.last; y++)
        for (Index ky = 0; ky < s.k; ky++) {
            const Index from = y * s.stride + s.shift(ky);
            T* to = patches + y * across * s.inputs() + ky * run;
            const bool there = from >= 0 && from < s.h;
            if (there) std::copy_n(image + from * s.w * s.c, s.w * s.c, line + middle * s.c);
            for (Index x = 0; x < across; x++)
                for (Index i = 0; i < run; i++) to[x * s.inputs() + i] = there ? line[x * s.stride * s.c + i] : 0;
        }
}

// Some images of a task, and of a single one perhaps only some lines, that are in the cache together. The lines are
// those of the maps, or of the images if they are what is made.
struct Blocks {
    Index images, lines;

    Blocks(Index of_image, Index some, Index all, Index most)
        : images(std::max(Index(1), std::min(some, most / of_image))),
          lines(of_image <= most ? all : std::max(Index(1), all * most / of_image)) {}
    template <class F>
    void each(Range some, Index all, F f) const {
        for (Index i = some.first; i < some.last; i += images)
            for (Index l = 0; l < all; l += lines)
                f(Range{i, std::min(some.last, i + images)}, Range{l, std::min(all, l + lines)});
    }
};

// Calls f with where two places begin, in the images and in the maps: for all pairs that a tap joins, of so many images
// and of the lines `ys` of their maps. From place to place there are `of_image` numbers, and `of_map`.
template <class F>
inline void pairs(const Sizes& s, Index tap, Index images, Range ys, Index of_image, Index of_map, F f) {
    const Index down = s.shift(tap / s.k), along = s.shift(tap % s.k);
    const Range xs = s.joined(tap % s.k, {0, s.across()}, {0, s.w});
    for (Index i = 0; i < images; i++)
        for (Index y = ys.first; y < ys.last; y++) {
            const Index image = ((i * s.h + y * s.stride + down) * s.w + along) * of_image;
            const Index map = (i * s.high() + y) * s.across() * of_map;
            for (Index x = xs.first; x < xs.last; x++) f(image + x * s.stride * of_image, map + x * of_map);
        }
}

// x, w -> y, or, where `backward`, the gradient of y, w -> the gradient of x: for some images of a task.
template <class T>
void through(const Sizes& s, bool backward, const T* from, const T* w, T* to, Range some) {
    Rooms<T>& room = rooms<T>();
    const bool patched = !backward && in_patches(s);
    const Sizes z = patched ? s.of_patches() : s;
    const Index in = backward ? z.o : z.c, out = backward ? z.c : z.o, wide = whole<T>(out);
    const Index lines = backward ? z.h : z.high(), line = (backward ? z.w : z.across()) * wide;

    T* weights = room.weights.of(z.taps() * in * wide);
    const T* end = w + s.o * s.inputs();
    if (!backward)
        spread<T>(w, s.inputs(), s.o, s.inputs(), end, [&](Index j) { return weights + row_of(s, j) * wide; });
    else
        for (Index o = 0; o < s.o; o++) {
            const auto row = [&](Index tap) { return weights + (tap * s.o + o) * wide; };
            spread<T>(w + o * s.inputs(), s.taps(), s.c, s.taps(), end, row);
        }

    const Blocks blocks(z.image() + z.map() / z.o * whole<T>(z.o), some.count(), lines, CACHE<T>);
    const bool direct = wide == out, fresh = !backward || z.stride == 1;  // then the middle tap joins all that is made
    T* padded = direct ? nullptr : room.maps.of(blocks.images * lines * line);
    T* patches = patched ? room.patches.of(blocks.images * z.image()) : nullptr;
    const T** a = room.a.of(blocks.images * blocks.lines * line / wide);
    T** rows = room.out.of(blocks.images * blocks.lines * line / wide);
    blocks.each(some, lines, [&](Range images, Range own) {
        const Index count = images.count();
        const T* begin = patched ? patches : from + images.first * (backward ? z.map() : z.image());
        T* target = direct ? to + images.first * lines * line : padded;
        if (patched)
            for (Index i = 0; i < count; i++)
                lay_out(s, from + (images.first + i) * s.image(), patches + i * z.image(), own);
        if (!fresh)
            for (Index i = 0; i < count; i++)
                std::memset(target + (i * lines + own.first) * line, 0, own.count() * line * sizeof(T));
        for (Index n = 0; n < z.taps(); n++) {
            const Index middle = z.taps() / 2, tap = n == 0 ? middle : n <= middle ? n - 1 : n;
            const Range ys = backward ? z.joined(tap / z.k, {0, z.high()}, own) : z.joined(tap / z.k, own, {0, z.h});
            Index found = 0;
            pairs(z, tap, count, ys, backward ? wide : in, backward ? in : wide, [&](Index image, Index map) {
                a[found] = begin + (backward ? map : image);
                rows[found++] = target + (backward ? image : map);
            });
            for (Index j = 0; j < in; j += DEEP) {
                const T* b = weights + (tap * in + j) * wide;
                const bool add = !fresh || n > 0 || j > 0;
                multiply<T>(Product<T>{a, j, b, rows, std::min(DEEP, in - j), wide, add}, found);
            }
        }
        if (direct) return;
        const Index across = line / wide;
        for (Index i = 0; i < count; i++)
            for (Index p = (i * lines + own.first) * across; p < (i * lines + own.last) * across; p++)
                std::copy_n(target + p * wide, out, to + (images.first * lines * across + p) * out);
    });
}

// x, gradient of y -> gradient of w, summed over some images of a task: some rows of `sums`, as `row_of` has them.
template <class T>
void against(const Sizes& s, const T* x, const T* g, T* sums, Range some, Range rows) {
    Rooms<T>& room = rooms<T>();
    const bool patched = in_patches(s);
    const Sizes z = patched ? s.of_patches() : s;
    const Index wide = whole<T>(z.o), places = z.high() * z.across();
    const Blocks blocks(z.image() + places * wide, some.count(), z.high(), CACHE<T>);
    const bool direct = wide == z.o;
    T* padded = direct ? nullptr : room.maps.of(blocks.images * places * wide);
    T* patches = patched ? room.patches.of(blocks.images * z.image()) : nullptr;
    const T** a = room.a.of(blocks.images * blocks.lines * z.across());
    const T** b = room.b.of(blocks.images * blocks.lines * z.across());
    std::memset(sums + rows.first * wide, 0, rows.count() * wide * sizeof(T));
    if (!direct) std::memset(padded, 0, blocks.images * places * wide * sizeof(T));
    blocks.each(some, z.high(), [&](Range images, Range own) {
        const Index count = images.count();
        const T* image = patched ? patches : x + images.first * z.image();
        const T* map = direct ? g + images.first * z.map() : padded;
        for (Index i = 0; i < count; i++) {
            if (patched) lay_out(s, x + (images.first + i) * s.image(), patches + i * z.image(), own);
            if (direct) continue;
            for (Index p = own.first * z.across(); p < own.last * z.across(); p++)
                std::copy_n(g + (images.first + i) * z.map() + p * z.o, z.o, padded + (i * places + p) * wide);
        }
        for (Index tap = 0; tap < z.taps(); tap++) {
            const Range own_rows{std::max(rows.first, tap * z.c), std::min(rows.last, (tap + 1) * z.c)};
            if (own_rows.count() <= 0) continue;
            Index found = 0;
            pairs(z, tap, count, z.joined(tap / z.k, own, {0, z.h}), z.c, wide, [&](Index of_image, Index of_map) {
                a[found] = image + of_image + own_rows.first - tap * z.c;
                b[found++] = map + of_map;
            });
            for (Index j = 0; j < found; j += DEEP) {
                const Outer<T> product{a + j, b + j, sums + own_rows.first * wide, std::min(DEEP, found - j), wide};
                multiply<T>(product, own_rows.count());
            }
        }
    });
}

enum Missing { IMAGES, WEIGHTS, MAPS };

// Of maps or images the ones that are missing. With fewer tasks than threads a task's images are shared out.
template <class T>
void images_or_maps(const Sizes& s, bool backward, const T* from, const T* w, T* to, int threads) {
    constexpr Index SOME = 8;  // images that are worth turning the weights once more
    const Index most = std::max(ceil(threads, s.tasks), std::min(ceil(2 * threads, s.tasks), s.n / SOME));
    const Index each = ceil(s.n, most), parts = ceil(s.n, each);
    const Index given = s.n * (backward ? s.map() : s.image()), made = s.n * (backward ? s.image() : s.map());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index unit = 0; unit < s.tasks * parts; unit++) {
        const Index task = unit / parts, first = unit % parts * each;
        const T* weights = w + task * s.o * s.inputs();
        through<T>(s, backward, from + task * given, weights, to + task * made, {first, std::min(s.n, first + each)});
    }
}

// The weights that are missing: sums over all images of a task. A few tasks with many images are cut into parts, always
// the same, that are added up in order; where that leaves threads idle, rows of the sums are shared out.
template <class T>
void weights(const Sizes& s, const T* x, const T* g, T* out, int threads) {
    constexpr Index SOME = 512, ENOUGH = 4, MOST = 1 << 24;  // places of a part; parts, and numbers in their sums
    const Index wide = whole<T>(s.o), rows = s.inputs(), size = rows * wide, places = s.high() * s.across();
    const Index fit = MOST / (s.tasks * size), most = std::min({s.n * places / SOME, s.n, ceil(ENOUGH, s.tasks), fit});
    const Index each = ceil(s.n, std::max(Index(1), most)), parts = ceil(s.n, each);
    const Index lot = ceil(rows, ceil(threads, s.tasks * parts)), lots = ceil(rows, lot);
    const auto finish = [&](const T* sums, Index task, Index o, Index outs) {
        const auto from = [&](Index j) { return sums + row_of(s, j) * wide + o; };
        collect<T>(from, out + (task * s.o + o) * rows, rows, outs, rows);
    };
    const Index images = s.n * s.image(), maps = s.n * s.map();
    if (parts * lots == 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (Index task = 0; task < s.tasks; task++) {
            T* sums = rooms<T>().weights.of(size);
            against<T>(s, x + task * images, g + task * maps, sums, {0, s.n}, {0, rows});
            finish(sums, task, 0, s.o);
        }
        return;
    }
    static thread_local Room<T> room;
    T* all = room.of(s.tasks * parts * size);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (Index unit = 0; unit < s.tasks * parts * lots; unit++) {
            const Index part = unit / lots % parts, task = unit / lots / parts, top = unit % lots * lot;
            const Range some{part * each, std::min(s.n, (part + 1) * each)}, own{top, std::min(rows, top + lot)};
            against<T>(s, x + task * images, g + task * maps, all + (task * parts + part) * size, some, own);
        }
        // A unit has a vector of outputs.
        const Index units = wide / WIDE<T>;
#pragma omp for schedule(static)
        for (Index unit = 0; unit < s.tasks * units; unit++) {
            const Index task = unit / units, o = unit % units * WIDE<T>;
            T* sums = all + task * parts * size;
            for (Index part = 1; part < parts; part++)
                for (Index r = 0; r < rows; r++) {
                    T* to = sums + r * wide + o;
                    store(to, load(to) + load(to + part * size));
                }
            finish(sums, task, o, std::min(WIDE<T>, s.o - o));
        }
    }
}

// Of images, weights and maps the gradient of <conv(images, weights), maps> for the one that is missing, from the other
// two. The same numbers whatever the number of threads.
template <class T>
void convolve(Missing missing, const Sizes& s, const T* p, const T* q, T* out, int threads) {
    if (missing == WEIGHTS) weights<T>(s, p, q, out, threads);
    if (missing == MAPS) images_or_maps<T>(s, false, p, q, out, threads);
    if (missing == IMAGES) images_or_maps<T>(s, true, q, p, out, threads);
}

}  // namespace

// z: tasks, images of each, their channels, height and width, outputs, side of the kernel, stride
#define METARUN_CONV(T, NAME)                                                                                       \
    extern "C" void metarun_conv_##NAME(int missing, const Index* z, const T* p, const T* q, T* out, int threads) { \
        convolve<T>(Missing(missing), {z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7]}, p, q, out, threads);        \
    }
METARUN_CONV(float, f32)
METARUN_CONV(double, f64)
