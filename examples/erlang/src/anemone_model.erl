%% A model as a process: it owns `anemone serve --stdio` through a port, asks, and hands the answers back.
%%
%% The process lives and dies with the program behind it. When that ends, for whatever reason, this process stops with the
%% reason, those who wait for an answer get an exit, and the supervisor starts both anew. When the Erlang side ends, the port
%% closes the program's stdin, and the program ends at the end of its input.
-module(anemone_model).
-behaviour(gen_server).
-export([start_link/1, ask/2, complete/3, os_pid/1]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).

-define(LOADING, 120000).
-define(ANSWERING, 300000).

%% `#{program => Path, bundle => Path}`, and `name` to register it under.
start_link(#{name := Name} = Options) ->
    gen_server:start_link({local, Name}, ?MODULE, Options, []).

%% The greedy answer to a question, through the model's chat template: `{ok, Text}` or `{error, Message}`.
ask(Model, Question) ->
    Messages = [#{<<"role">> => <<"user">>, <<"content">> => unicode:characters_to_binary(Question)}],
    case gen_server:call(Model, {request, #{<<"messages">> => Messages, <<"temperature">> => 0}}, ?ANSWERING) of
        #{<<"choices">> := [#{<<"message">> := #{<<"content">> := Text}} | _]} -> {ok, Text};
        #{<<"error">> := #{<<"message">> := Message}} -> {error, Message}
    end.

%% The greedy continuation of token ids, `Max` tokens at most: `{ok, Ids}` or `{error, Message}`.
complete(Model, Ids, Max) ->
    case gen_server:call(Model, {request, #{<<"prompt_ids">> => Ids, <<"max_new">> => Max}}, ?ANSWERING) of
        #{<<"ok">> := true, <<"generated_ids">> := Generated} -> {ok, Generated};
        #{<<"ok">> := false, <<"error">> := Message} -> {error, Message}
    end.

%% The operating system's number for the program.
os_pid(Model) -> gen_server:call(Model, os_pid).

init(#{program := Program, bundle := Bundle}) ->
    Arguments = ["serve", Bundle, "--stdio", "--quiet"],
    Port = open_port({spawn_executable, Program}, [{args, Arguments}, {line, 65536}, binary, exit_status]),
    {ok, #{port => Port, line => [], next => 1, waiting => #{}}, {continue, load}}.

%% Loading takes its time, and nothing is asked before it is over.
handle_continue(load, #{port := Port} = State) ->
    receive
        {Port, {data, {eol, <<"READY ", _/binary>>}}} -> {noreply, State};
        {Port, {exit_status, Status}} -> {stop, {program_ended, Status}, State}
    after ?LOADING -> {stop, not_ready, State}
    end.

handle_call({request, Fields}, From, #{port := Port, next := Id, waiting := Waiting} = State) ->
    port_command(Port, [anemone_json:encode(Fields#{<<"id">> => Id}), $\n]),
    {noreply, State#{next := Id + 1, waiting := Waiting#{Id => From}}};
handle_call(os_pid, _From, #{port := Port} = State) ->
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    {reply, Pid, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info({Port, {data, {noeol, Part}}}, #{port := Port, line := Line} = State) ->
    {noreply, State#{line := [Line, Part]}};
handle_info({Port, {data, {eol, Part}}}, #{port := Port, line := Line, waiting := Waiting} = State) ->
    #{<<"id">> := Id} = Answer = anemone_json:decode(iolist_to_binary([Line, Part])),
    {From, Rest} = maps:take(Id, Waiting),
    gen_server:reply(From, Answer),
    {noreply, State#{line := [], waiting := Rest}};
handle_info({Port, {exit_status, Status}}, #{port := Port} = State) ->
    {stop, {program_ended, Status}, State}.
