// The largest number of each square of four places, with the ReLU that follows it, and the way between places and
// squares that its gradients take: metarun/kernels/pool.py, on a CPU.
//
// Images are (n, height, width, channels), squares (n, height / 2, width / 2, channels); an odd last line or column is
// in no square. `sizes` are those four. `from` says of each square which of its places (0 to 3) is the largest, the
// first of equals, with MUTED where the ReLU has changed it.
#include <cstdint>

#include "lanes.hpp"

namespace {

using Byte = std::uint8_t;

constexpr Byte MUTED = 4;
constexpr Index SMALL = 16384;  // so few numbers are not worth waking the other threads

// f(first of the places above, of those below, of the squares) for each line of squares.
template <class F>
void lines(const Index* sizes, int threads, F f) {
    const Index n = sizes[0], height = sizes[1], line = sizes[2] * sizes[3];
    const Index tall = height / 2, square = sizes[2] / 2 * sizes[3];
    if (n * height * line < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Index i = 0; i < n * tall; i++) {
        const Index above = (i / tall * height + i % tall * 2) * line;
        f(above, above + line, i * square);
    }
}

// Numbers and what is said of each: at most as many as a vector has, and zeros beyond `count`.
template <class T>
using Says = decltype(Vector<T>{} < Vector<T>{});

template <class T>
inline Vector<T> some(const T* from, Index count) {
    if (count == WIDE<T>) return load(from);
    Vector<T> v = {};
    std::memcpy(&v, from, count * sizeof(T));
    return v;
}

template <class T>
inline void put(T* to, Vector<T> v, Index count) {
    if (count == WIDE<T>)
        store(to, v);
    else
        std::memcpy(to, &v, count * sizeof(T));
}

template <class T>
struct Bytes {
    typedef Byte Vector __attribute__((vector_size(WIDE<T>)));
};

template <class T>
inline Says<T> said(const Byte* from, Index count) {
    typename Bytes<T>::Vector v = {};
    std::memcpy(&v, from, count == WIDE<T> ? WIDE<T> : count);
    return __builtin_convertvector(v, Says<T>);
}

template <class T>
inline void say(Byte* to, Says<T> v, Index count) {
    const auto bytes = __builtin_convertvector(v, typename Bytes<T>::Vector);
    std::memcpy(to, &bytes, count == WIDE<T> ? WIDE<T> : count);
}

// f(its four places, itself, how many channels) for each vector of a square's channels; where in images and squares.
template <class T, class F>
void squares(const Index* sizes, int threads, F f) {
    const Index wide = sizes[2] / 2, channels = sizes[3];
    lines(sizes, threads, [=](Index above, Index below, Index square) {
        for (Index i = 0; i < wide; i++)
            for (Index j = 0; j < channels; j += WIDE<T>) {
                const Index left = 2 * i * channels + j, right = left + channels;
                const Index places[] = {above + left, above + right, below + left, below + right};
                f(places, square + i * channels + j, std::min(WIDE<T>, channels - j));
            }
    });
}

// What the ReLU leaves of it.
template <class T>
inline Vector<T> through(Vector<T> v, Says<T> at, T slope) {
    return (at & MUTED) != 0 ? (slope == 0 ? Vector<T>{} : slope * v) : v;
}

template <class T>
void largest(const Index* sizes, const T* x, T* y, Byte* from, T slope, int threads) {
    squares<T>(sizes, threads, [=](const Index* places, Index square, Index count) {
        Vector<T> most = some(x + places[0], count);
        Says<T> at = {};
        for (int i = 1; i < 4; i++) {
            const Vector<T> v = some(x + places[i], count);
            const Says<T> larger = (v > most) | (v != v);  // what is no number counts as largest
            most = larger ? v : most;
            at = larger ? Says<T>{} + i : at;
        }
        at |= (most <= 0) & MUTED;
        put(y + square, through<T>(most, at, slope), count);
        say<T>(from + square, at, count);
    });
}

// To each square's largest place what the square has, and nothing to the others.
template <class T>
void back(const Index* sizes, const T* g, const Byte* from, T* to, T slope, int threads) {
    const Index n = sizes[0], height = sizes[1], width = sizes[2], channels = sizes[3], line = width * channels;
    squares<T>(sizes, threads, [=](const Index* places, Index square, Index count) {
        const Says<T> at = said<T>(from + square, count);
        const Vector<T> own = through<T>(some(g + square, count), at, slope);
        for (int i = 0; i < 4; i++) put(to + places[i], (at & 3) == i ? own : Vector<T>{}, count);
    });
    for (Index i = 0; width % 2 && i < n * height; i++) std::fill_n(to + (i + 1) * line - channels, channels, T(0));
    for (Index i = 0; height % 2 && i < n; i++) std::fill_n(to + ((i + 1) * height - 1) * line, line, T(0));
}

// From each square's largest place what it has.
template <class T>
void along(const Index* sizes, const T* v, const Byte* from, T* to, T slope, int threads) {
    squares<T>(sizes, threads, [=](const Index* places, Index square, Index count) {
        const Says<T> at = said<T>(from + square, count);
        Vector<T> own = some(v + places[0], count);
        for (int i = 1; i < 4; i++) own = (at & 3) == i ? some(v + places[i], count) : own;
        put(to + square, through<T>(own, at, slope), count);
    });
}

}  // namespace

#define METARUN_POOL(T, NAME)                                                                                       \
    extern "C" void metarun_pool_##NAME(                                                                            \
        const Index* sizes, const T* x, T* y, Byte* from, double slope, int threads                                 \
    ) {                                                                                                             \
        largest<T>(sizes, x, y, from, T(slope), threads);                                                           \
    }                                                                                                               \
    extern "C" void metarun_pool_back_##NAME(                                                                       \
        const Index* sizes, const T* squares, const Byte* from, T* places, double slope, int threads                \
    ) {                                                                                                             \
        back<T>(sizes, squares, from, places, T(slope), threads);                                                   \
    }                                                                                                               \
    extern "C" void metarun_pool_along_##NAME(                                                                      \
        const Index* sizes, const T* places, const Byte* from, T* squares, double slope, int threads                \
    ) {                                                                                                             \
        along<T>(sizes, places, from, squares, T(slope), threads);                                                  \
    }
METARUN_POOL(float, f32)
METARUN_POOL(double, f64)
