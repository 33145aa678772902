# Sourced by run_tests.sh after _environment.sh.

# test_in_two_processes ARGUMENTS: runs pytest. A process that dies without a word, as where memory runs out, says nothing
# about the test that it was at: where that is all that went wrong, those tests run once more, alone.
test_in_two_processes() {
    local log died wrong code=0
    log=$(mktemp)
    "$PYTHON" -m pytest -q -n 2 --durations=15 "$@" | tee "$log" || code=$?
    died=$(grep -c "^worker '.*' crashed while running" "$log" || true)
    wrong=$(grep -cE '^(FAILED|ERROR) ' "$log" || true)
    if [ $code = 1 ] && [ "$died" -gt 0 ] && [ "$died" = "$wrong" ]; then
        say "A test process died; what it was at runs once more, alone"
        code=0
        "$PYTHON" -m pytest -q --last-failed --last-failed-no-failures none "$@" || code=$?
    fi
    rm -f "$log"
    return $code
}
