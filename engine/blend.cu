// What postproc/blend_kernels.py computes, on a GPU: one thread a voxel, its three channels in turn.
//
// Every product and sum is rounded on its own and in the order of the CPU's, so that both give the same bits. Arrays
// are dense along x; `*_row`, `*_section` and `*_channel` are the distances from one to the next, in values.

// sums += (floor + (wz * wy) * wx) * patch for a region of depth x rows x columns voxels, at whose first voxel
// the pointers stand.
extern "C" __global__ void accumulate(
    float *__restrict__ sums, long long sums_channel, long long sums_section, int sums_row,
    const unsigned char *__restrict__ patch, long long patch_channel, long long patch_section, int patch_row,
    const float *__restrict__ wz, const float *__restrict__ wy, const float *__restrict__ wx, float floor,
    int depth, int rows, int columns)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= columns || y >= rows)
        return;
    // A grid has at most 65535 blocks along z.
    for (int z = blockIdx.z; z < depth; z += gridDim.z) {
        const float weight = __fadd_rn(floor, __fmul_rn(__fmul_rn(wz[z], wy[y]), wx[x]));
        float *sum = sums + z * sums_section + (long long)y * sums_row + x;
        const unsigned char *value = patch + z * patch_section + (long long)y * patch_row + x;
        for (int channel = 0; channel < 3; ++channel) {
            *sum = __fadd_rn(*sum, __fmul_rn(weight, (float)*value));
            sum += sums_channel;
            value += patch_channel;
        }
    }
}

// target = round(sums / (floor * nz * ny * nx + wz * wy * wx)), halves up, and sums = 0, for dense arrays of
// 3 x depth x rows x columns; the factors of the axes stand at the first voxel.
extern "C" __global__ void normalise(
    float *__restrict__ sums, unsigned char *__restrict__ target,
    const float *__restrict__ nz, const float *__restrict__ ny, const float *__restrict__ nx,
    const float *__restrict__ wz, const float *__restrict__ wy, const float *__restrict__ wx, float floor,
    int depth, int rows, int columns)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= columns || y >= rows)
        return;
    const long long section = (long long)rows * columns;
    for (int z = blockIdx.z; z < depth; z += gridDim.z) {
        const float count = __fmul_rn(__fmul_rn(floor, nz[z]), ny[y]);
        const float factor = __fmul_rn(wz[z], wy[y]);
        const float divisor = __fadd_rn(__fmul_rn(count, nx[x]), __fmul_rn(factor, wx[x]));
        long long voxel = z * section + (long long)y * columns + x;
        for (int channel = 0; channel < 3; ++channel) {
            float value = __fdiv_rn(sums[voxel], divisor);
            sums[voxel] = 0.0f;
            // Comparisons in this direction turn NaN into 0.
            value = value > 0.0f ? value : 0.0f;
            value = value < 255.0f ? value : 255.0f;
            target[voxel] = (unsigned char)(int)__fadd_rn(value, 0.5f);
            voxel += depth * section;
        }
    }
}
