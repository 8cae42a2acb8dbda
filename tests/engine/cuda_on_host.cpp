// Runs the kernels of engine/blend.cu on the CPU, thread after thread: what the compiler of a GPU gives, for tests.
// Compile with KERNELS set to the path of the source, in quotes, and without contraction of products and sums.

#include <cstring>
#include <tuple>
#include <utility>

struct Index {
    unsigned x, y, z;
};
static Index gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __device__
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fdiv_rn(float a, float b) { return a / b; }

#include KERNELS

template <class... Types, std::size_t... At>
static void call(void (*kernel)(Types...), void **arguments, std::index_sequence<At...>)
{
    kernel(*static_cast<Types *>(arguments[At])...);
}

template <class... Types>
static void run(void (*kernel)(Types...), void **arguments)
{
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
                            call(kernel, arguments, std::index_sequence_for<Types...>{});
}

// As the driver's cuLaunchKernel: pointers to the arguments. Returns whether there is such a kernel.
extern "C" int launch(const char *name, const unsigned *grid, const unsigned *block, void **arguments)
{
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    if (!std::strcmp(name, "accumulate"))
        run(accumulate, arguments);
    else if (!std::strcmp(name, "normalise"))
        run(normalise, arguments);
    else
        return 0;
    return 1;
}
