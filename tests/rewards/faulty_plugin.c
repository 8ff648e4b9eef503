/* SPDX-License-Identifier: Apache-2.0 */
/* A plug-in that does what the response asks for, right or wrong. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/reward_plugin.h"

#ifndef FAULTY_ABI
#define FAULTY_ABI RWP_ABI
#endif

static int is(rwp_str text, const char* word) {
  return text.n == strlen(word) && memcmp(text.p, word, text.n) == 0;
}

uint32_t rwp_abi_version(void) { return FAULTY_ABI; }

int rwp_create(rwp_str config_json, void** self, char error[512]) {
  if (is(config_json, "bad")) {
    strcpy(error, "'bad' is no setting of mine");
    return 1;
  }
  *self = (void*)(is(config_json, "mute") ? "mute" : "");
  return 0;
}

int rwp_describe(void* self, rwp_str* out_json) {
  const char* text = "{\"low\": -1, \"high\": 2, \"deterministic\": false, \"compares_siblings\": true}";
  if (strcmp((const char*)self, "mute") == 0) text = "mute";
  out_json->p = text;
  out_json->n = strlen(text);
  return 0;
}

int rwp_score(void* self, const rwp_host* host, const rwp_sample* samples, uint32_t num_samples,
              rwp_result* out) {
  (void)self;
  for (uint32_t i = 0; i < num_samples; ++i) {
    const rwp_sample* sample = &samples[i];
    if (is(sample->response, "fail")) return 7;
    if (is(sample->response, "crash")) abort();
    out[i].status = is(sample->response, "invalid") ? RWP_INVALID_GOLD
                    : is(sample->response, "odd")   ? 99
                                                    : RWP_OK;
    out[i].score = is(sample->response, "nan")   ? NAN
                   : is(sample->response, "far") ? 3
                                                 : (double)sample->group_size - 1;
    if (is(sample->response, "echo")) {
      char* text = host->alloc(host->context, sample->gold.n);
      memcpy(text, sample->gold.p, sample->gold.n);
      out[i].detail.p = text;
      out[i].detail.n = sample->gold.n;
    }
    if (is(sample->response, "greedy") && host->alloc(host->context, 1ull << 40) == 0) {
      out[i].status = RWP_ERROR;
    }
  }
  return 0;
}

void rwp_destroy(void* self) { (void)self; }
