/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GRADUS_REWARD_PLUGIN_H
#define GRADUS_REWARD_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

/* A reward in a shared object (docs/rewards.md), in C99 or anything that can export C functions. A
 * library exports the five functions below; Gradus loads it with dlopen and calls
 *
 *   rwp_abi_version, rwp_create, rwp_describe, then rwp_score any number of times, rwp_destroy.
 *
 * This header is frozen: a library built against it works with every Gradus of ABI 1. New fields
 * come at the end of a struct, whose first member is the size that its writer knew: read no member
 * that lies beyond it. No exception may leave a function. */

#ifdef __cplusplus
extern "C" {
#endif

#define RWP_ABI 1u

#if defined(__GNUC__)
#define RWP_EXPORT __attribute__((visibility("default")))
#else
#define RWP_EXPORT
#endif

/* Bytes, UTF-8 as a rule, without a 0 at the end; p may be null when n is 0. */
typedef struct {
  const char* p;
  uint64_t n;
} rwp_str;

enum {
  RWP_OK = 0,             /* score holds */
  RWP_NOT_APPLICABLE = 1, /* nothing to say about this task */
  RWP_TIMEOUT = 2,
  RWP_ERROR = 3,        /* the check broke */
  RWP_INVALID_GOLD = 4, /* the ground truth cannot be read */
  RWP_UNDECIDED = 5     /* the check ran and cannot tell */
};

/* A response to judge. All pointers are the host's and die when rwp_score returns. */
typedef struct {
  uint32_t struct_size;
  uint32_t index_in_group;
  uint64_t prompt_id;
  rwp_str prompt;
  rwp_str response;         /* untrusted */
  rwp_str gold;             /* the ground truth */
  rwp_str data_source;      /* the task */
  rwp_str extra_json;       /* the row's extra_info, a JSON object */
  const int32_t* token_ids; /* of the response; null when there are none */
  uint64_t num_tokens;
  uint32_t group_size;   /* samples of one prompt lie side by side */
  uint32_t is_truncated; /* 1: ended by the length limit */
} rwp_sample;

/* Filled by the plug-in; the host sets struct_size and zeroes the rest. */
typedef struct {
  uint32_t struct_size;
  uint32_t status; /* RWP_OK, ... */
  double score;
  rwp_str detail; /* for people; memory of rwp_host.alloc or static */
} rwp_result;

/* What the plug-in may ask of its host, during rwp_score. */
typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  void* context; /* first argument of the functions */
  /* Memory that lives until the host has read the results; null when there is none left. */
  void* (*alloc)(void* context, uint64_t num_bytes);
} rwp_host;

/* The RWP_ABI that the library was built with. */
RWP_EXPORT uint32_t rwp_abi_version(void);

/* Makes an instance; config_json is the option `config`, "{}" if it is not set. Returns 0, or else
 * writes a message of at most 511 bytes and a 0. */
RWP_EXPORT int rwp_create(rwp_str config_json, void** self, char error[512]);

/* A JSON object that lives as long as the instance: {"name": text, "deterministic": bool,
 * "thread_safe": bool, "compares_siblings": bool, "low": number, "high": number}; what is left out
 * is true, false, false, 0, 1. Scores outside of [low, high] are errors. Returns 0. */
RWP_EXPORT int rwp_describe(void* self, rwp_str* out_json);

/* Judges num_samples samples; out has as many results. Returns 0; anything else makes all of them
 * errors. Called from several threads at once if thread_safe. */
RWP_EXPORT int rwp_score(void* self, const rwp_host* host, const rwp_sample* samples,
                         uint32_t num_samples, rwp_result* out);

RWP_EXPORT void rwp_destroy(void* self);

#ifdef __cplusplus
}
#endif

#endif
