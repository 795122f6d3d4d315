#!/usr/bin/env escript
%% Asks a supervised model for hello world, kills the program under it, and asks again:
%%
%%     escript examples/erlang/hello.escript ANEMONE BUNDLE
%%
%% Prints both answers; exit code 0 if the supervisor brought the model back and the answers are equal.

-define(QUESTION, "write hello world in Erlang").

main([Program, Bundle]) ->
    load(filename:join(filename:dirname(escript:script_name()), "src")),
    %% What a crash looks like is the supervisor's report; it is expected here.
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    {ok, Supervisor} = anemone_sup:start_link(#{name => model, program => filename:absname(Program), bundle => Bundle}),
    {ok, First} = anemone_model:ask(model, ?QUESTION),
    io:format("~ts~n", [First]),
    {ok, Ids} = anemone_model:complete(model, [1, 2, 3], 4),
    {error, Refusal} = anemone_model:complete(model, [], 4),
    io:format("~n~w from [1, 2, 3]; of no tokens at all it says: ~ts~n", [Ids, Refusal]),

    Before = {whereis(model), anemone_model:os_pid(model)},
    os:cmd("kill -9 " ++ integer_to_list(element(2, Before))),
    After = await_another(Before, 100),
    io:format("killed: process ~w, program ~w; brought back: process ~w, program ~w~n~n", tuple_to_list(Before) ++ tuple_to_list(After)),

    {ok, Second} = anemone_model:ask(model, ?QUESTION),
    io:format("~ts~n", [Second]),
    exit(Supervisor, shutdown),
    receive {'EXIT', Supervisor, _} -> ok after 10000 -> ok end,
    halt(case Second of First -> 0; _ -> 1 end);
main(_) ->
    io:format(standard_error, "usage: hello.escript ANEMONE BUNDLE~n", []),
    halt(2).

%% The model's process and program, once neither is the one that was.
await_another(_, 0) -> error(not_brought_back);
await_another({Process, Pid} = Before, Tries) ->
    timer:sleep(100),
    case whereis(model) of
        undefined -> await_another(Before, Tries - 1);
        Process -> await_another(Before, Tries - 1);
        Another ->
            New = anemone_model:os_pid(Another),
            true = New =/= Pid,
            {Another, New}
    end.

load(Folder) ->
    [begin
         {ok, Module, Code} = compile:file(File, [binary, report, warnings_as_errors]),
         {module, Module} = code:load_binary(Module, File, Code)
     end || File <- filelib:wildcard(filename:join(Folder, "*.erl"))].
