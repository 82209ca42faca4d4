// Vectors as wide as the processor's, by the compiler's own extensions: one source for all processors.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace {

using Index = long;

#if defined(__AVX512F__)
constexpr Index BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr Index BYTES = 32, REGISTERS = 16;
#else
constexpr Index BYTES = 16, REGISTERS = 32;
#endif

template <class T>
constexpr Index WIDE = BYTES / sizeof(T);

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(BYTES)));
    typedef float Anywhere __attribute__((vector_size(BYTES), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(BYTES)));
    typedef double Anywhere __attribute__((vector_size(BYTES), aligned(8), may_alias));
};
template <class T>
using Vector = typename Lanes<T>::Vector;

template <class T>
inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename Lanes<T>::Anywhere*>(from);
}

template <class T>
inline void store(T* to, Vector<T> v) {
    *reinterpret_cast<typename Lanes<T>::Anywhere*>(to) = v;
}

// How many numbers whole vectors of so many take.
template <class T>
inline Index whole(Index n) {
    return (n + WIDE<T> - 1) / WIDE<T> * WIDE<T>;
}

// Memory that a thread keeps between calls.
template <class T>
class Room {
    T* at = nullptr;
    Index size = 0;

  public:
    T* of(Index n) {
        if (n > size) {
            std::free(at);
            at = static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
            if (at == nullptr) std::abort();
            size = n;
        }
        return at;
    }
    ~Room() { std::free(at); }
};

// A square of vectors is turned over its diagonal by swapping squares of 1, 2, 4, ... in it.
template <class T, Index SIDE, Index... J>
inline void exchange(Vector<T>& a, Vector<T>& b, std::integer_sequence<Index, J...>) {
    Vector<T> upper = __builtin_shufflevector(a, b, (J & SIDE ? WIDE<T> + J - SIDE : J)...);
    b = __builtin_shufflevector(a, b, (J & SIDE ? WIDE<T> + J : J + SIDE)...);
    a = upper;
}

template <class T, Index SIDE = 1>
inline void turn(Vector<T>* rows) {
    if constexpr (SIDE < WIDE<T>) {
        for (Index i = 0; i < WIDE<T>; i++)
            if (!(i & SIDE))
                exchange<T, SIDE>(rows[i], rows[i | SIDE], std::make_integer_sequence<Index, WIDE<T>>{});
        turn<T, 2 * SIDE>(rows);
    }
}

// to(j)[i] = from[i * step + j] for i < m and j < n; each to(j) gets whole vectors, with zeros beyond m. What lies
// before `end` may be read.
template <class T, class To>
inline void spread(const T* from, Index step, Index m, Index n, const T* end, To to) {
    constexpr Index W = WIDE<T>;
    for (Index i = 0; i < m; i += W)
        for (Index j = 0; j < n; j += W) {
            Vector<T> rows[W];
            Index mi = std::min(W, m - i), nj = std::min(W, n - j);
            if (mi == W && from + (i + W - 1) * step + j + W <= end)
                for (Index r = 0; r < W; r++) rows[r] = load(from + (i + r) * step + j);
            else {
                alignas(64) T edge[W][W] = {};
                for (Index r = 0; r < mi; r++)
                    for (Index e = 0; e < nj; e++) edge[r][e] = from[(i + r) * step + j + e];
                for (Index r = 0; r < W; r++) rows[r] = load(edge[r]);
            }
            turn<T>(rows);
            for (Index r = 0; r < nj; r++) store(to(j + r) + i, rows[r]);
        }
}

// to[i * step + j] = from(j)[i] for i < m and j < n; each from(j) has whole vectors.
template <class T, class From>
inline void collect(From from, T* to, Index step, Index m, Index n) {
    constexpr Index W = WIDE<T>;
    for (Index i = 0; i < m; i += W)
        for (Index j = 0; j < n; j += W) {
            Vector<T> rows[W] = {};
            Index mi = std::min(W, m - i), nj = std::min(W, n - j);
            for (Index r = 0; r < nj; r++) rows[r] = load(from(j + r) + i);
            turn<T>(rows);
            if (mi == W && nj == W)
                for (Index r = 0; r < W; r++) store(to + (i + r) * step + j, rows[r]);
            else
                for (Index r = 0; r < mi; r++)
                    for (Index e = 0; e < nj; e++) to[(i + r) * step + j + e] = rows[r][e];
        }
}

}  // namespace
