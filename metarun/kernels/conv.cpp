// Convolutions of many tasks, each with weights of its own, and both their gradients.
//
// Images lie in memory as torch has them, channel by channel. For the arithmetic an image is turned so that a place's
// channels lie together, in the thread's own cache, and a convolution is then a product of matrices for each place of
// the kernel, whose rows are looked up rather than copied.
#include "lanes.hpp"

namespace {

struct Sizes {
    Index tasks, n, c, h, w, o, k, stride;  // images (tasks, n, c, h, w), weights (tasks, o, c, k, k), k odd

    Index high() const { return (h - 1) / stride + 1; }
    Index across() const { return (w - 1) / stride + 1; }
    Index places() const { return high() * across(); }
    Index taps() const { return k * k; }
    Index inputs() const { return c * taps(); }
    Index image() const { return c * h * w; }
    Index map() const { return o * places(); }
};

template <class T>
struct Product {
    const T* const* a;     // rows of the left factor: for each, where it begins
    const Index* segment;  // and where its parts lie from there, each of `length` numbers `step` apart
    Index segments, length, step;
    const T* b;  // the right factor, row after row, `b_step` apart
    Index b_step;
    T* const* out;  // rows of the product
    bool add;       // to what there is
};

// ROWS x VECTORS of a product, from column `at` on. All of it stays in registers.
template <class T, Index ROWS, Index VECTORS>
__attribute__((noinline)) void tile(const Product<T>& p, Index row, Index at) {
    Vector<T> sums[ROWS][VECTORS] = {};
    if (p.add)
        for (Index r = 0; r < ROWS; r++)
            for (Index v = 0; v < VECTORS; v++) sums[r][v] = load(p.out[row + r] + at + v * WIDE<T>);
    const T* b = p.b + at;
    for (Index s = 0; s < p.segments; s++) {
        const T* a[ROWS];
        for (Index r = 0; r < ROWS; r++) a[r] = p.a[row + r] + p.segment[s];
        for (Index j = 0; j < p.length; j++, b += p.b_step) {
            Vector<T> factors[VECTORS];
            for (Index v = 0; v < VECTORS; v++) factors[v] = load(b + v * WIDE<T>);
            for (Index r = 0; r < ROWS; r++) {
                Vector<T> one = a[r][j * p.step] - Vector<T>{};
                for (Index v = 0; v < VECTORS; v++) sums[r][v] += one * factors[v];
            }
        }
    }
    for (Index r = 0; r < ROWS; r++)
        for (Index v = 0; v < VECTORS; v++) store(p.out[row + r] + at + v * WIDE<T>, sums[r][v]);
}

template <class T, Index ROWS, Index VECTORS>
Index rows_from(const Product<T>& p, Index row, Index rows, Index at) {
    for (; row + ROWS <= rows; row += ROWS) tile<T, ROWS, VECTORS>(p, row, at);
    if constexpr (ROWS > 1)
        if (row < rows) row = rows_from<T, (ROWS > 6 ? 6 : ROWS - 1), VECTORS>(p, row, rows, at);
    return row;
}

template <class T, Index VECTORS>
Index columns_from(const Product<T>& p, Index rows, Index at, Index columns) {
    constexpr Index MOST = VECTORS == 1 ? REGISTERS / 3 : 6;
    for (; at + VECTORS * WIDE<T> <= columns; at += VECTORS * WIDE<T>) rows_from<T, MOST, VECTORS>(p, 0, rows, at);
    if constexpr (VECTORS > 1) at = columns_from<T, VECTORS / 2>(p, rows, at, columns);
    return at;
}

// `columns` are whole vectors.
template <class T>
void multiply(const Product<T>& p, Index rows, Index columns) {
    columns_from<T, (REGISTERS > 16 ? 4 : 2)>(p, rows, 0, columns);
}

// Numbers that are worked on at once, of half a megabyte.
template <class T>
constexpr Index CACHE = 512 * 1024 / sizeof(T);

// The smallest number from 0 on that is `a` modulo `stride`.
inline Index first_of(Index a, Index stride) { return (a % stride + stride) % stride; }

// Some images of one task, turned, and what lies in them: each place's channels together, with a margin of zeros; or,
// in `patches`, the inputs of each place of the output.
template <class T>
class Images {
    const Sizes& s;
    const bool patches;
    Index* inside = nullptr;  // where each place of an image is

  public:
    const Index channels, size;  // numbers that a place, and an image, takes here
    T* at = nullptr;

    Images(const Sizes& s, bool patches)
        : s(s), patches(patches), channels(patches ? s.inputs() : whole<T>(s.c)),
          size((patches ? s.places() : (s.h + s.k - 1) * (s.w + s.k - 1)) * channels) {}

    // How many images of so many are in the cache at once, with what becomes of them.
    Index together(Index images) const {
        return std::max(Index(1), std::min(images, CACHE<T> / (size + s.places() * whole<T>(s.o))));
    }
    void enter(Room<T>& room, Room<Index>& table, Index images) {
        at = room.of(images * size);
        if (patches) return;
        inside = table.of(s.h * s.w);
        for (Index y = 0, p = 0; y < s.h; y++)
            for (Index x = 0; x < s.w; x++, p++) inside[p] = ((y + s.k / 2) * (s.w + s.k - 1) + x + s.k / 2) * channels;
        std::memset(at, 0, images * size * sizeof(T));
    }

    // Where the inputs of a place of the output begin, and where a tap's are from there.
    Index begin(Index place) const {
        if (patches) return place * channels;
        return (place / s.across() * (s.w + s.k - 1) + place % s.across()) * s.stride * channels;
    }
    Index tap(Index t) const { return (t / s.k * (s.w + s.k - 1) + t % s.k) * channels; }

    void read(Index i, const T* from) {
        T* to = at + i * size;
        if (patches)
            lay_out(from, to);
        else
            spread<T>(from, s.h * s.w, s.c, s.h * s.w, from + s.image(), [&](Index p) { return to + inside[p]; });
    }

  private:
    void lay_out(const T* from, T* to) const {
        const Index high = s.h + s.k - 1, across = s.w + s.k - 1;
        static thread_local Room<T> room;
        T* framed = room.of(s.c * high * across);
        std::memset(framed, 0, s.c * high * across * sizeof(T));
        for (Index c = 0; c < s.c; c++)
            for (Index y = 0; y < s.h; y++)
                std::copy_n(from + (c * s.h + y) * s.w, s.w, framed + (c * high + y + s.k / 2) * across + s.k / 2);
        for (Index y = 0; y < s.high(); y++)
            for (Index x = 0; x < s.across(); x++)
                for (Index c = 0; c < s.c; c++)
                    for (Index ky = 0; ky < s.k; ky++) {
                        const T* row = framed + (c * high + y * s.stride + ky) * across + x * s.stride;
                        for (Index kx = 0; kx < s.k; kx++) *to++ = row[kx];
                    }
    }
};

template <class T>
struct Rooms {
    Room<T> images, weights, maps;
    Room<const T*> a;
    Room<T*> out;
    Room<Index> places, segments;
};

template <class T>
Rooms<T>& rooms() {
    static thread_local Rooms<T> own;
    return own;
}

// With a few channels a patch is copied after all: a product of so few numbers is not worth its beginning.
inline bool in_patches(const Sizes& s) { return s.c < 16 && s.k > 1; }

// Rows of the weights are their inputs, all channels of a tap and then the next tap's; where patches are laid out they
// are as torch has them.
inline Index row_of(const Sizes& s, Index input) {
    return in_patches(s) ? input : input % s.taps() * s.c + input / s.taps();
}

// The gradient of an image's maps, turned: a place's outputs together.
template <class T>
void read_map(const Sizes& s, const T* from, T* to) {
    spread<T>(from, s.places(), s.o, s.places(), from + s.map(), [&](Index p) { return to + p * whole<T>(s.o); });
}

// x (n, c, h, w), w (o, c, k, k) -> y (n, o, high, across), for the images from `first` up to `last`
template <class T>
void maps(const Sizes& s, const T* x, const T* w, T* y, Index first, Index last) {
    Rooms<T>& room = rooms<T>();
    Images<T> images(s, in_patches(s));
    const Index places = s.places(), outputs = whole<T>(s.o), at_once = images.together(last - first);
    T* weights = room.weights.of(s.inputs() * outputs);
    const T* end = w + s.o * s.inputs();
    spread<T>(w, s.inputs(), s.o, s.inputs(), end, [&](Index j) { return weights + row_of(s, j) * outputs; });
    images.enter(room.images, room.places, at_once);
    T* sums = room.maps.of(at_once * places * outputs);
    const T** a = room.a.of(at_once * places);
    T** out = room.out.of(at_once * places);
    for (Index i = 0, r = 0; i < at_once; i++)
        for (Index p = 0; p < places; p++, r++) {
            a[r] = images.at + i * images.size + images.begin(p);
            out[r] = sums + r * outputs;
        }
    const Index taps = in_patches(s) ? 1 : s.taps(), length = s.inputs() / taps;
    for (Index i = first; i < last; i += at_once) {
        const Index count = std::min(at_once, last - i);
        for (Index q = 0; q < count; q++) images.read(q, x + (i + q) * s.image());
        for (Index t = 0; t < taps; t++) {
            const Index tap = taps == 1 ? 0 : images.tap(t);
            const T* own = weights + t * length * outputs;
            multiply<T>({a, &tap, 1, length, 1, own, outputs, out, t > 0}, count * places, outputs);
        }
        for (Index q = 0; q < count; q++) {
            const T* own = sums + q * places * outputs;
            collect<T>([&](Index p) { return own + p * outputs; }, y + (i + q) * s.map(), places, s.o, places);
        }
    }
}

// w, gradient of y -> gradient of x, for the images from `first` up to `last`
//
// Which taps reach a place of an image depends on its row and column modulo the stride. Places with the same taps make
// one product, whose left factor is the gradient of y within a margin of zeros.
template <class T>
void images_gradient(const Sizes& s, const T* w, const T* g, T* gx, Index first, Index last) {
    Rooms<T>& room = rooms<T>();
    const Index outputs = whole<T>(s.o), inputs = whole<T>(s.c), middle = s.k / 2, pixels = s.h * s.w;
    const Index before = (s.k - 1) / s.stride, after = (middle + s.stride - 1) / s.stride;
    const Index line = before + s.across() + after, size = (before + s.high() + after) * line * outputs;
    const Index at_once = std::max(Index(1), std::min(last - first, CACHE<T> / (size + pixels * inputs)));
    T* weights = room.weights.of(s.taps() * s.o * inputs);
    for (Index o = 0; o < s.o; o++) {
        const auto to = [&](Index t) { return weights + (t * s.o + o) * inputs; };
        spread<T>(w + o * s.inputs(), s.taps(), s.c, s.taps(), w + s.o * s.inputs(), to);
    }
    T* slopes = room.maps.of(at_once * size);
    std::memset(slopes, 0, at_once * size * sizeof(T));
    Index* inside = room.places.of(s.places());
    for (Index y = 0, p = 0; y < s.high(); y++)
        for (Index x = 0; x < s.across(); x++, p++) inside[p] = ((y + before) * line + x + before) * outputs;
    T* sums = room.images.of(at_once * pixels * inputs);
    const T** a = room.a.of(at_once * pixels);
    T** out = room.out.of(at_once * pixels);
    for (Index i = first; i < last; i += at_once) {
        const Index count = std::min(at_once, last - i);
        for (Index q = 0; q < count; q++) {
            T* own = slopes + q * size;
            const T* from = g + (i + q) * s.map();
            spread<T>(from, s.places(), s.o, s.places(), from + s.map(), [&](Index p) { return own + inside[p]; });
        }
        for (Index top = 0; top < s.stride; top++)
            for (Index left = 0; left < s.stride; left++) {
                Index rows = 0;
                for (Index q = 0; q < count; q++)
                    for (Index y = first_of(top - middle, s.stride); y < s.h; y += s.stride)
                        for (Index x = first_of(left - middle, s.stride); x < s.w; x += s.stride, rows++) {
                            const Index down = (y + middle - top) / s.stride, along = (x + middle - left) / s.stride;
                            a[rows] = slopes + q * size + ((down + before) * line + along + before) * outputs;
                            out[rows] = sums + (q * pixels + y * s.w + x) * inputs;
                        }
                bool add = false;
                for (Index ky = top; ky < s.k; ky += s.stride)
                    for (Index kx = left; kx < s.k; kx += s.stride, add = true) {
                        const Index tap = -(ky / s.stride * line + kx / s.stride) * outputs;
                        const T* own = weights + (ky * s.k + kx) * s.o * inputs;
                        multiply<T>({a, &tap, 1, s.o, 1, own, inputs, out, add}, rows, inputs);
                    }
                if (!add) multiply<T>({a, nullptr, 0, 0, 0, weights, 0, out, false}, rows, inputs);  // no tap: zeros
            }
        for (Index q = 0; q < count; q++) {
            const T* own = sums + q * pixels * inputs;
            collect<T>([&](Index p) { return own + p * inputs; }, gx + (i + q) * s.image(), pixels, s.c, pixels);
        }
    }
}

// x, gradient of y -> gradient of w, summed over the images from `first` up to `last`: the rows of `sums`, as `row_of`
// has them, from `top` up to `bottom`
template <class T>
void weights_gradient(
    const Sizes& s, const T* x, const T* g, T* sums, Index first, Index last, Index top, Index bottom
) {
    Rooms<T>& room = rooms<T>();
    Images<T> images(s, in_patches(s));
    const Index places = s.places(), outputs = whole<T>(s.o), at_once = images.together(last - first);
    images.enter(room.images, room.places, at_once);
    T* slopes = room.maps.of(at_once * places * outputs);
    const T** a = room.a.of(s.inputs());
    T** out = room.out.of(s.inputs());
    for (Index r = 0; r < s.inputs(); r++) {
        a[r] = images.at + (in_patches(s) ? r : images.tap(r / s.c) + r % s.c);
        out[r] = sums + r * outputs;
    }
    // A line of places of the output lies evenly in the image; patches do from end to end.
    const Index lines = in_patches(s) ? 1 : s.high(), length = places / lines;
    const Index step = in_patches(s) ? s.inputs() : s.stride * images.channels;
    Index* segment = room.segments.of(at_once * lines);
    for (Index i = 0, l = 0; i < at_once; i++)
        for (Index y = 0; y < lines; y++, l++) segment[l] = i * images.size + images.begin(y * length);
    for (Index i = first; i < last; i += at_once) {
        const Index count = std::min(at_once, last - i);
        for (Index q = 0; q < count; q++) {
            images.read(q, x + (i + q) * s.image());
            T* own = slopes + q * places * outputs;
            read_map(s, g + (i + q) * s.map(), own);
        }
        const Product<T> p{a + top, segment, count * lines, length, step, slopes, outputs, out + top, i > first};
        multiply<T>(p, bottom - top, outputs);
    }
}

enum Missing { IMAGES, WEIGHTS, MAPS };

inline Index ceil(Index a, Index b) { return (a + b - 1) / b; }

// Of maps or images the ones that are missing. Where there are fewer tasks than threads, a task's images are shared out.
template <class T>
void through(Missing missing, const Sizes& s, const T* p, const T* q, T* out, int threads) {
    constexpr Index SOME = 8;  // images that are worth turning the weights once more
    const Index most = std::max(ceil(threads, s.tasks), std::min(ceil(4 * threads, s.tasks), s.n / SOME));
    const Index each = ceil(s.n, most), parts = ceil(s.n, each);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index unit = 0; unit < s.tasks * parts; unit++) {
        const Index task = unit / parts, first = unit % parts * each, last = std::min(s.n, first + each);
        const Index x = task * s.n * s.image(), y = task * s.n * s.map(), w = task * s.o * s.inputs();
        if (missing == MAPS)
            maps<T>(s, p + x, q + w, out + y, first, last);
        else
            images_gradient<T>(s, p + w, q + y, out + x, first, last);
    }
}

// The weights that are missing: sums over all images of a task. A few tasks with many images are cut into parts, always
// the same, that are added up in order; where that leaves threads idle, rows of the sums are shared out.
template <class T>
void against(const Sizes& s, const T* x, const T* g, T* out, int threads) {
    constexpr Index SOME = 8, ENOUGH = 16, MOST = 1 << 24;  // images of a part; parts, and numbers in their sums
    const Index outputs = whole<T>(s.o), rows = s.inputs(), size = rows * outputs;
    const Index most = std::max(Index(1), std::min({s.n / SOME, ceil(ENOUGH, s.tasks), MOST / (s.tasks * size)}));
    const Index each = ceil(s.n, most), parts = ceil(s.n, each);
    const Index lot = ceil(rows, ceil(threads, s.tasks * parts)), lots = ceil(rows, lot);
    const auto finish = [&](const T* sums, Index task, Index o, Index outs) {
        const auto from = [&](Index j) { return sums + row_of(s, j) * outputs + o; };
        collect<T>(from, out + (task * s.o + o) * rows, rows, outs, rows);
    };
    if (parts * lots == 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (Index task = 0; task < s.tasks; task++) {
            T* sums = rooms<T>().weights.of(size);
            weights_gradient<T>(s, x + task * s.n * s.image(), g + task * s.n * s.map(), sums, 0, s.n, 0, rows);
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
            const Index first = part * each, last = std::min(s.n, first + each);
            T* sums = all + (task * parts + part) * size;
            const T *images = x + task * s.n * s.image(), *maps = g + task * s.n * s.map();
            weights_gradient<T>(s, images, maps, sums, first, last, top, std::min(rows, top + lot));
        }
        // A unit has a vector of outputs.
        const Index units = outputs / WIDE<T>;
#pragma omp for schedule(static)
        for (Index unit = 0; unit < s.tasks * units; unit++) {
            const Index task = unit / units, o = unit % units * WIDE<T>;
            T* sums = all + task * parts * size;
            for (Index part = 1; part < parts; part++)
                for (Index r = 0; r < rows; r++) {
                    T* to = sums + r * outputs + o;
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
    if (missing == WEIGHTS)
        against<T>(s, p, q, out, threads);
    else
        through<T>(missing, s, p, q, out, threads);
}

}  // namespace

// sizes: tasks, images of each, their channels, height and width, outputs, side of the kernel, stride
extern "C" void metarun_conv_f32(int missing, const Index* sizes, const float* p, const float* q, float* out, int threads) {
    const Index* z = sizes;
    convolve<float>(Missing(missing), {z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7]}, p, q, out, threads);
}
extern "C" void metarun_conv_f64(int missing, const Index* sizes, const double* p, const double* q, double* out, int threads) {
    const Index* z = sizes;
    convolve<double>(Missing(missing), {z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7]}, p, q, out, threads);
}
