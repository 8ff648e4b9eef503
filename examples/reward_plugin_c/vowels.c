/* SPDX-License-Identifier: Apache-2.0 */
/* A reward as a C plug-in: the share of vowels among the letters of the response. */
#include <stdlib.h>
#include <string.h>

#include "rewards/reward_plugin.h"

uint32_t rwp_abi_version(void) { return RWP_ABI; }

int rwp_create(rwp_str config_json, void** self, char error[512]) {
  if (config_json.n != 2) {
    strcpy(error, "vowels has no settings; leave the option config out");
    return 1;
  }
  *self = NULL;
  return 0;
}

int rwp_describe(void* self, rwp_str* out_json) {
  static const char text[] = "{\"name\": \"vowels\", \"thread_safe\": true}";
  (void)self;
  out_json->p = text;
  out_json->n = sizeof(text) - 1;
  return 0;
}

int rwp_score(void* self, const rwp_host* host, const rwp_sample* samples, uint32_t num_samples,
              rwp_result* out) {
  (void)self;
  (void)host;
  for (uint32_t i = 0; i < num_samples; ++i) {
    uint64_t num_letters = 0, num_vowels = 0;
    for (uint64_t j = 0; j < samples[i].response.n; ++j) {
      const char c = (char)(samples[i].response.p[j] | 32);
      num_letters += c >= 'a' && c <= 'z';
      num_vowels += c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u';
    }
    out[i].status = RWP_OK;
    out[i].score = num_letters == 0 ? 0 : (double)num_vowels / (double)num_letters;
  }
  return 0;
}

void rwp_destroy(void* self) { (void)self; }
