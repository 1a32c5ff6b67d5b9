// Instructions of a device that CUDA C++ has no function for without headers.

#define MINUS_INFINITY __int_as_float(0xff800000)

#ifdef REAL_IS_BF16
// The nearest bf16 of a float.
__device__ __forceinline__ unsigned short rounded(float x) {
  unsigned short out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
  return out;
}

// The nearest bf16 of two floats, the first in the low half.
__device__ __forceinline__ unsigned both_rounded(float first, float second) {
  unsigned out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
}

// Four 8 x 8 matrices from the rows that the lanes point at: lane 8 m + r at row r of matrix m.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const unsigned short *row) {
  unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at));
}

// The same with each matrix transposed.
__device__ __forceinline__ void load_matrices_turned(unsigned (&out)[4], const unsigned short *row) {
  unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at));
}

// sums [16, 8] += a [16, 16] · b [16, 8].
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
