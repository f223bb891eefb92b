/* Behaviour of the ABI on the echo device. Without arguments it runs every test; with some, those of these
 * names. */

#include "check.h"

#include <stdio.h>
#include <string.h>

/* abi_arguments.c */
TEST(nulls_are_errors_everywhere);
TEST(initialisers_agree);
TEST(struct_sizes_are_checked);
TEST(values_are_checked);
TEST(unusable_options_are_errors);
TEST(statuses_have_names);
TEST(features_can_be_asked_for);
/* abi_requests.c */
TEST(a_prompt_is_streamed_back);
TEST(tokens_and_user_prompts_work);
TEST(text_is_whole_code_points);
TEST(stop_strings_and_tokens_end_the_output);
TEST(token_limits_end_the_output);
TEST(log_probabilities_are_flat_arrays);
TEST(a_request_can_be_cancelled);
TEST(a_deadline_ends_a_request);
TEST(a_full_queue_is_busy);
TEST(an_unread_request_is_paused_alone);
TEST(many_requests_run_together);
TEST(text_functions_give_buffers);
TEST(plan_info_and_stats_agree);
/* abi_lifetime.c */
TEST(a_queue_has_its_own_events_and_descriptor);
TEST(a_destroyed_queue_cancels_its_requests);
TEST(stale_handles_are_errors);
TEST(close_ends_requests_and_can_be_drained);
TEST(destroy_ends_what_is_in_flight);
TEST(close_lets_pollers_drain);
TEST(engines_are_independent);
TEST(log_lines_reach_the_host);
TEST(a_forked_child_is_refused);
TEST(eight_threads_at_once);
TEST(destroy_under_fire);
/* abi_shutdown.c */
TEST(a_long_step_delays_nobody_for_two_seconds);
TEST(no_log_line_begins_after_destroy);
TEST(a_destroyed_queue_has_closed_its_descriptor);
TEST(requests_of_a_destroyed_queue_do_not_wait_for_their_turn);
TEST(what_is_not_polled_stays_bounded);
TEST(signals_are_left_to_the_host);

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
#define ENTRY(name) {#name, name},
    ENTRY(nulls_are_errors_everywhere)
    ENTRY(initialisers_agree)
    ENTRY(struct_sizes_are_checked)
    ENTRY(values_are_checked)
    ENTRY(unusable_options_are_errors)
    ENTRY(statuses_have_names)
    ENTRY(features_can_be_asked_for)
    ENTRY(a_prompt_is_streamed_back)
    ENTRY(tokens_and_user_prompts_work)
    ENTRY(text_is_whole_code_points)
    ENTRY(stop_strings_and_tokens_end_the_output)
    ENTRY(token_limits_end_the_output)
    ENTRY(log_probabilities_are_flat_arrays)
    ENTRY(a_request_can_be_cancelled)
    ENTRY(a_deadline_ends_a_request)
    ENTRY(a_full_queue_is_busy)
    ENTRY(an_unread_request_is_paused_alone)
    ENTRY(many_requests_run_together)
    ENTRY(text_functions_give_buffers)
    ENTRY(plan_info_and_stats_agree)
    ENTRY(a_queue_has_its_own_events_and_descriptor)
    ENTRY(a_destroyed_queue_cancels_its_requests)
    ENTRY(stale_handles_are_errors)
    ENTRY(close_ends_requests_and_can_be_drained)
    ENTRY(destroy_ends_what_is_in_flight)
    ENTRY(close_lets_pollers_drain)
    ENTRY(engines_are_independent)
    ENTRY(log_lines_reach_the_host)
    ENTRY(a_forked_child_is_refused)
    ENTRY(eight_threads_at_once)
    ENTRY(destroy_under_fire)
    ENTRY(a_long_step_delays_nobody_for_two_seconds)
    ENTRY(no_log_line_begins_after_destroy)
    ENTRY(a_destroyed_queue_has_closed_its_descriptor)
    ENTRY(requests_of_a_destroyed_queue_do_not_wait_for_their_turn)
    ENTRY(what_is_not_polled_stays_bounded)
    ENTRY(signals_are_left_to_the_host)
};

static int is_wanted(const char *name, int num_names, char **names)
{
    int i;

    for (i = 0; i < num_names; i++) {
        if (strcmp(names[i], name) == 0)
            return 1;
    }
    return num_names == 0;
}

int main(int argc, char **argv)
{
    size_t i;
    int num_run = 0;

    for (i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (is_wanted(tests[i].name, argc - 1, argv + 1)) {
            int64_t start = now_ms();

            printf("%s", tests[i].name);
            fflush(stdout);
            tests[i].run();
            printf(" ok (%d ms)\n", (int)(now_ms() - start));
            num_run++;
        }
    }
    printf("%d tests passed\n", num_run);
    return num_run == 0;
}
